//! What the documents tell people to type: every verb and every flag is there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fake::Fake;
use crate::{Ran, beige};

/// The repository's documents.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let names = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "bench/README.md"];
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .chain(names.map(|name| root.join(name)))
        .collect()
}

/// The words that follow `beige` wherever a line has it as a command, up to what is no part of it.
fn commands(line: &str) -> Vec<Vec<&str>> {
    let starts = line.match_indices("beige ").map(|(at, _)| at);
    let is_word = |at: &usize| line[..*at].chars().next_back().is_none_or(|c| c == ' ' || c == '`');
    let words = |at: usize| {
        let rest = &line[at + "beige ".len()..];
        let end = rest.find(['`', '#', '>', '|', ';']).unwrap_or(rest.len());
        rest[..end].split_whitespace().collect::<Vec<_>>()
    };
    // Words of capitals stand for any.
    let is_verb = |words: &Vec<&str>| words.first().is_some_and(|word| word.starts_with(char::is_lowercase));
    starts.filter(is_word).map(words).filter(is_verb).collect()
}

#[test]
fn every_command_in_them_is_known() {
    let (fake, mut seen) = (Fake::start(), 0);
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for words in commands(line) {
                let depth = if ["models", "train", "keys"].contains(&words[0]) { 2 } else { 1 };
                let verbs = words.iter().take(depth).take_while(|word| !word.starts_with('-'));
                let asked: Vec<&str> = verbs.copied().chain(["--help"]).collect();
                let Ran { code, stdout, stderr } = beige(&fake, &asked);
                let place = format!("{}:{}: beige {}", path.display(), number + 1, words.join(" "));
                assert_eq!(code, Some(0), "{place}: {stderr}");
                let flags = words.iter().filter(|word| word.starts_with("--"));
                let missing = flags.filter(|flag| !stdout.contains(**flag)).collect::<Vec<_>>();
                assert!(missing.is_empty(), "{place}: {missing:?} in {stdout}");
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "only {seen} commands were found");
}
