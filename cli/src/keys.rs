//! `beige keys new`: a key for a caller, and what the gateway keeps of it.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use tls::secret::{self, Fingerprint};

use crate::failure::Failure;
use crate::print;

const AFTER_HELP: &str = "\
The key is shown once and kept nowhere. The lines below it go into the file that the gateway is given as --keys; they \
hold the key's SHA-256, from which nobody can find the key. The gateway reads the file again when it changes.

Examples:
  beige keys new search --rights embed,rerank,tokens
  beige keys new ci --rights models.read,models.write --expires 2027-01-31T00:00:00Z
  BEIGE_KEY=bg_… beige embed \"What is the BGE family?\"";

/// Make API keys.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print a new key, and the entry that lets it in
    New(NewArgs),
}

/// A new key.
#[derive(Args, Debug)]
struct NewArgs {
    /// Whose key it is: letters, digits, dots, dashes and underscores
    #[arg(value_parser = id)]
    id: String,
    /// What it allows
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Right::Embed, Right::Rerank, Right::Tokens], value_name = "RIGHT,…")]
    rights: Vec<Right>,
    /// When it ends, such as 2027-01-31T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME", value_parser = time)]
    expires: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a key may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Right {
    /// Vectors
    #[value(name = "embed")]
    Embed,
    /// Scores
    #[value(name = "rerank")]
    Rerank,
    /// Tokens and their count
    #[value(name = "tokens")]
    Tokens,
    /// Which models there are
    #[value(name = "models.read")]
    ModelsRead,
    /// To publish checkpoints and change what names mean
    #[value(name = "models.write")]
    ModelsWrite,
    /// Which workers there are
    #[value(name = "cluster.read")]
    ClusterRead,
    /// To train
    #[value(name = "train")]
    Train,
}

/// Prints it.
pub(crate) fn run(args: KeysArgs) -> Result<(), Failure> {
    let What::New(NewArgs { id, mut rights, expires, json }) = args.what;
    rights.sort_unstable();
    rights.dedup();
    let names: Vec<String> = rights.iter().copied().filter_map(name).collect();
    let key = secret::generate();
    let entry = entry(&id, Fingerprint::of(key.as_bytes()), &names, expires.as_deref());
    if json {
        return print::json(
            &json!({ "id": id, "key": key, "rights": names, "expires": expires, "entry": entry }),
        );
    }
    // What is piped into the file is the entry; who has the key on a terminal has it from there.
    print::note(format_args!(
        "the key of {id}, shown this once:\n\n  {key}\n\nfor the gateway's file of keys:\n"
    ));
    print::line(entry.trim_end())
}

fn name(right: Right) -> Option<String> {
    right.to_possible_value().map(|value| value.get_name().to_owned())
}

/// As the gateway's file of keys has it.
fn entry(id: &str, fingerprint: Fingerprint, rights: &[String], expires: Option<&str>) -> String {
    let rights: Vec<_> = rights.iter().map(|right| format!("{right:?}")).collect();
    let expires = expires.map(|expires| format!("expires = {expires}\n")).unwrap_or_default();
    format!("[[key]]\nid = {id:?}\nsha256 = \"{fingerprint}\"\nrights = [{}]\n{expires}", rights.join(", "))
}

fn id(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&text.len()) && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err("it is 1 to 64 letters, digits, dots, dashes and underscores".to_owned())
}

/// `YYYY-MM-DDTHH:MM:SSZ`; whether there is such a day is for the gateway to say.
fn time(text: &str) -> Result<String, String> {
    let form = "dddd-dd-ddTdd:dd:ddZ";
    let fits = |(c, wanted): (char, char)| if wanted == 'd' { c.is_ascii_digit() } else { c == wanted };
    if text.len() == form.len() && text.chars().zip(form.chars()).all(fits) {
        return Ok(text.to_owned());
    }
    Err("it is a time such as 2027-01-31T00:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_the_gateway_reads() {
        let rights = ["embed".to_owned(), "models.read".to_owned()];
        let written = entry("ci", Fingerprint::of(b"abc"), &rights, Some("2027-01-31T00:00:00Z"));
        let expected = "[[key]]\nid = \"ci\"\n\
            sha256 = \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"\n\
            rights = [\"embed\", \"models.read\"]\nexpires = 2027-01-31T00:00:00Z\n";
        assert_eq!(written, expected);
    }

    #[test]
    fn names_and_times_have_one_form() {
        assert!(["a", "search-1", "team.x_y"].iter().all(|text| id(text).is_ok()));
        assert!(["", "a b", "a\"b", "ä", &"x".repeat(65)].iter().all(|text| id(text).is_err()));
        assert!(time("2027-01-31T00:00:00Z").is_ok());
        assert!(
            ["", "2027-01-31", "2027-01-31 00:00:00Z", "2027-01-31T00:00:0xZ"]
                .iter()
                .all(|t| time(t).is_err())
        );
    }
}
