//! How a swap is to go, as flags.

use clap::Args;
use proto::v1::{CanaryPlan, SwapPlan};

use crate::failure::Failure;

/// How a swap is to go; what is not said is up to the server.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The swap")]
pub(super) struct PlanArgs {
    /// Workers that must be ready before anything changes [default: three quarters]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    min_ready: Option<u32>,
    /// Seconds until they must be, or nothing changes at all [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    deadline: Option<u32>,
    /// Seconds that the old checkpoint stays loaded, for rollback; 0 lets it go as soon as no call uses it
    /// [default: until the next swap]
    #[arg(long, value_name = "SECONDS")]
    retire_after: Option<u32>,
    /// The vectors cannot be compared with those of existing indexes, and that is understood: both checkpoints stay
    /// until the old one is retired, so that indexes can be made anew meanwhile
    #[arg(long)]
    new_space: bool,
    /// Begin with so many per cent of the callers, always the same ones
    #[arg(long, value_name = "PERCENT", value_parser = per_mille)]
    canary: Option<u32>,
    /// Seconds until the others follow, where nothing speaks against it [default: 300]
    #[arg(long, value_name = "SECONDS", requires = "canary")]
    canary_hold: Option<u32>,
    /// Canary calls before anything is judged [default: 50]
    #[arg(long, value_name = "N", requires = "canary")]
    canary_calls: Option<u32>,
    /// Roll back where the canary's share of failed calls exceeds the others' by more [default: 0.01]
    #[arg(long, value_name = "SHARE", requires = "canary", value_parser = not_negative)]
    max_error_excess: Option<f64>,
    /// Roll back where the canary's p99 latency exceeds the others' so many times [default: 1.5; not with
    /// --canary 100]
    #[arg(long, value_name = "RATIO", requires = "canary", value_parser = not_negative)]
    max_p99_ratio: Option<f64>,
    /// Per cent of the calls whose copies the new checkpoint answers too, silently, to compare
    #[arg(long, value_name = "PERCENT", value_parser = per_mille)]
    shadow: Option<u32>,
    /// Seconds that calls are compared where there is no canary [default: 60]
    #[arg(long, value_name = "SECONDS", requires = "shadow")]
    shadow_seconds: Option<u32>,
}

impl PlanArgs {
    /// As the server is told.
    pub(super) fn to_plan(&self) -> SwapPlan {
        let canary = self.canary.map(|per_mille| CanaryPlan {
            per_mille,
            hold_seconds: self.canary_hold,
            min_calls: self.canary_calls,
            max_error_excess: self.max_error_excess,
            max_p99_ratio: self.max_p99_ratio,
        });
        SwapPlan {
            min_ready: self.min_ready,
            deadline_seconds: self.deadline,
            retire_after_seconds: self.retire_after,
            new_space: self.new_space,
            canary,
            shadow_per_mille: self.shadow.unwrap_or(0),
            shadow_seconds: self.shadow_seconds,
        }
    }

    /// Where there is no swap, nothing can be said of it.
    pub(super) fn without_swap(&self) -> Result<(), Failure> {
        if self.to_plan() == SwapPlan::default() {
            return Ok(());
        }
        Err(Failure::Usage("how the swap is to go is said, and --promote is not".to_owned()))
    }
}

/// Per cent, to a tenth, as thousandths.
fn per_mille(text: &str) -> Result<u32, String> {
    let wrong = || "it is a number above 0 and at most 100, to a tenth at most".to_owned();
    let number = text.strip_suffix('%').unwrap_or(text);
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(tenth) || tenth.len() != 1 || whole.len() > 3 {
        return Err(wrong());
    }
    match format!("{whole}{tenth}").parse() {
        Ok(per_mille @ 1..=1000) => Ok(per_mille),
        Ok(_) | Err(_) => Err(wrong()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "it is a number of at least 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_given_in_per_cent() {
        for (text, expected) in [("5", 50), ("0.1", 1), ("2.5%", 25), ("100", 1000), ("100.0", 1000)] {
            assert_eq!(per_mille(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "-1", "100.1", "101", "1.25", "five", "1e2", "+5", "1000", "%"] {
            assert!(per_mille(text).is_err(), "{text}");
        }
    }
}
