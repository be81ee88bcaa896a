//! A job as one HTML page: no script, no style sheet, no picture from elsewhere.

use std::fmt::Write as _;

use proto::v1::{Job, JobStep};

use super::objects;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}\
td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}td.n,th.n{text-align:right}\
pre{background:#f5f3ee;padding:1rem;overflow-x:auto}svg{background:#f5f3ee;width:100%;height:auto}\
.up{color:#176b3a}.down{color:#a02020}";
/// Size of a drawing, and what is left for its scale.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 60.0;
const BELOW: f64 = 24.0;

/// The page.
pub(super) fn page(job: &Job) -> String {
    let mut page = String::new();
    let name = escape(&job.name);
    let state = objects::state(job.state());
    // Writing to a string does not fail.
    let _ = writeln!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title><style>{STYLE}</style>\
         <h1>{name}: {state}</h1>{}{}{}{}{}{}<h2>Configuration</h2><pre>{}</pre></html>",
        facts(job),
        quality(job),
        chart("Loss", &job.curve, |step| step.loss),
        chart("Learning rate", &job.curve, |step| step.learning_rate),
        chart("Gradient norm", &job.curve, |step| step.grad_norm),
        events(job),
        escape(&job.spec),
    );
    page
}

fn facts(job: &Job) -> String {
    let seconds = job.ended_unix_ms.saturating_sub(job.started_unix_ms) / 1_000;
    let mut rows = vec![("Ranks", job.ranks.to_string()), ("Attempts", job.attempt.to_string())];
    if job.started_unix_ms > 0 && job.ended_unix_ms > 0 {
        rows.push(("Took", format!("{} min {} s", seconds / 60, seconds % 60)));
    }
    if let Some(last) = job.last {
        rows.push((
            "Steps",
            format!("{} of {}, {:.0} tokens/s", last.step, job.steps, job.tokens_per_second),
        ));
    }
    if !job.model_dir.is_empty() {
        rows.push(("Model", format!("{}, as after step {}", job.model_dir, job.model_step)));
    }
    if !job.digest.is_empty() {
        rows.push(("Version", format!("{}@{}", job.alias, job.digest)));
    }
    if let Some(gate) = &job.gate {
        rows.push(("Gate", objects::gate_line(gate)));
    }
    if !job.reason.is_empty() {
        rows.push(("Reason", job.reason.clone()));
    }
    let rows: Vec<String> =
        rows.iter().map(|(name, value)| format!("<tr><th>{name}<td>{}", escape(value))).collect();
    format!("<table>{}</table>", rows.concat())
}

/// Every metric before, after and in between.
fn quality(job: &Job) -> String {
    let Some([first, last]) = objects::before_and_after(job) else { return String::new() };
    let mut rows = String::new();
    for metric in &last.metrics {
        let of = |at: &proto::v1::JobEvaluation| {
            at.metrics.iter().find(|it| it.name == metric.name).map(|it| it.value)
        };
        let before = of(first).unwrap_or_default();
        let best = job.evaluations.iter().filter_map(of).fold(f64::NEG_INFINITY, f64::max);
        let change = metric.value - before;
        let class = if change < 0.0 { "down" } else { "up" };
        let _ = write!(
            rows,
            "<tr><td>{}<td class=n>{before:.4}<td class=n>{:.4}<td class=\"n {class}\">{change:+.4}<td class=n>{best:.4}",
            escape(&metric.name),
            metric.value
        );
    }
    format!(
        "<h2>Quality</h2><table><tr><th>Metric<th class=n>Before<th class=n>After<th class=n>Change<th class=n>Best{rows}</table>"
    )
}

/// A curve over the steps.
fn chart(title: &str, curve: &[JobStep], of: impl Fn(&JobStep) -> f64) -> String {
    let points: Vec<(f64, f64)> =
        curve.iter().map(|step| (number(step.step), of(step))).filter(|(_, y)| y.is_finite()).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return String::new() };
    let (low, high) =
        points.iter().fold((f64::MAX, f64::MIN), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    let (across, up) = ((last.0 - first.0).max(1.0), if high > low { high - low } else { 1.0 });
    let place = |(x, y): &(f64, f64)| {
        let x = LEFT + (x - first.0) / across * (WIDTH - LEFT - 10.0);
        let y = 10.0 + (high - y) / up * (HEIGHT - BELOW - 20.0);
        format!("{x:.1},{y:.1}")
    };
    let line: Vec<String> = points.iter().map(place).collect();
    let (bottom, base) = (HEIGHT - BELOW - 10.0, HEIGHT - 8.0);
    format!(
        "<h2>{title}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title} over steps\">\
         <polyline fill=\"none\" stroke=\"#7a5c2e\" stroke-width=\"1.5\" points=\"{}\"/>\
         <g font-size=\"11\" fill=\"#555\"><text x=\"4\" y=\"16\">{}</text><text x=\"4\" y=\"{bottom}\">{}</text>\
         <text x=\"{LEFT}\" y=\"{base}\">step {}</text><text x=\"{}\" y=\"{base}\" text-anchor=\"end\">step {}</text></g></svg>",
        line.join(" "),
        short(high),
        short(low),
        first.0,
        WIDTH - 10.0,
        last.0,
    )
}

fn events(job: &Job) -> String {
    let begun = job.submitted_unix_ms;
    let row = |event: &proto::v1::JobEvent| {
        format!(
            "<tr><td class=n>{} s<td>{}",
            event.at_unix_ms.saturating_sub(begun) / 1_000,
            escape(&event.what)
        )
    };
    let rows: Vec<String> = job.events.iter().map(row).collect();
    format!("<h2>Events</h2><table>{}</table>", rows.concat())
}

#[allow(clippy::cast_precision_loss, reason = "steps are far below 2^53")]
fn number(step: u64) -> f64 {
    step as f64
}

fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.001 { format!("{value:.2e}") } else { format!("{value:.4}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use proto::v1::{JobEvaluation, Metric};

    use super::*;

    fn evaluation(step: u64, value: f64) -> JobEvaluation {
        JobEvaluation { step, metrics: vec![Metric { name: "ndcg_at_10".to_owned(), value }] }
    }

    #[test]
    fn a_page_needs_nothing_and_runs_nothing() {
        let job = Job {
            name: "<script>alert(1)</script>".to_owned(),
            spec: "kind: \"embedder\" # <b>".to_owned(),
            curve: (1..=3)
                .map(|step| JobStep {
                    step,
                    loss: 1.0 / number(step),
                    learning_rate: 0.25 * number(step),
                    grad_norm: 8.0 + number(step),
                })
                .collect(),
            evaluations: vec![evaluation(0, 0.25), evaluation(3, 0.5)],
            ..Job::default()
        };
        let page = page(&job);
        assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("http"), "{page}");
        assert!(page.contains("0.2500") && page.contains("0.5000") && page.contains("+0.2500"), "{page}");
        // Loss, learning rate and gradient norm, each with its highest and lowest.
        assert_eq!(page.matches("<polyline").count(), 3, "{page}");
        for number in ["1.0000", "0.3333", "0.7500", "11.0000", "9.0000"] {
            assert!(page.contains(number), "{number}: {page}");
        }
        assert!(!super::page(&Job::default()).contains("<svg"), "there is no curve without a step");
    }
}
