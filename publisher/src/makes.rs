//! What a checkpoint makes of an input, as far as its directory says: enough to refuse golden samples of another one before
//! a byte is sent. Whether it loads, and what it makes of them, is the worker's to say.

use std::fs;
use std::path::Path;

use proto::v1::GoldenSample;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The answers of one kind of checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Makes {
    /// A score of a query and a text.
    Scores,
    /// An embedding of so many numbers of a text.
    Embeddings(usize),
}

#[derive(Deserialize)]
struct Config {
    architectures: Vec<String>,
    hidden_size: usize,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
}

impl Makes {
    /// What the checkpoint in `dir` makes; `None` where its files do not say.
    pub(crate) fn of(dir: &Path) -> Option<Self> {
        let Config { architectures, hidden_size } = read(&dir.join("config.json"))?;
        let [architecture] = architectures.as_slice() else { return None };
        if architecture.ends_with("ForSequenceClassification") {
            return Some(Self::Scores);
        }
        let list = dir.join("modules.json");
        let modules: Vec<Module> = if list.exists() { read(&list)? } else { Vec::new() };
        // Any other module may make another length of it.
        let keeps_length = |module: &Module| {
            let kind = module.kind.rsplit('.').next().unwrap_or_default();
            ["Transformer", "Pooling", "Normalize"].contains(&kind)
        };
        modules.iter().all(keeps_length).then_some(Self::Embeddings(hidden_size))
    }

    /// Says why a sample cannot be of this checkpoint, where it cannot.
    pub(crate) fn check(self, sample: &GoldenSample) -> Result<(), String> {
        let numbers = sample.embedding.len() / 4;
        match (self, sample.query.is_some()) {
            (Self::Embeddings(width), true) => Err(format!(
                "it has a query and a score, and the checkpoint makes embeddings of {width} numbers"
            )),
            (Self::Scores, false) => {
                Err("it has an embedding, and the checkpoint makes scores of a query and a text".to_owned())
            }
            (Self::Embeddings(width), false) if numbers != width => {
                Err(format!("its embedding has {numbers} numbers, and those of the checkpoint {width}"))
            }
            (Self::Embeddings(_), false) | (Self::Scores, true) => Ok(()),
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: &str = r#"[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}"#;

    #[track_caller]
    fn check(config: &str, modules: Option<&str>, expected: Option<Makes>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        if let Some(modules) = modules {
            fs::write(dir.path().join("modules.json"), modules).unwrap();
        }
        assert_eq!(Makes::of(dir.path()), expected, "{config} {modules:?}");
    }

    #[test]
    fn a_directory_says_what_its_checkpoint_makes() {
        let config =
            |architecture: &str| format!(r#"{{"architectures": ["{architecture}"], "hidden_size": 6}}"#);
        let (bert, reranker) = (config("BertModel"), config("XLMRobertaForSequenceClassification"));
        check(&bert, None, Some(Makes::Embeddings(6)));
        check(&bert, Some(&format!("{MODULES}]")), Some(Makes::Embeddings(6)));
        check(&reranker, None, Some(Makes::Scores));
    }

    #[test]
    fn what_a_directory_does_not_say_is_not_guessed() {
        let dense = r#", {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#;
        let bert = r#"{"architectures": ["BertModel"], "hidden_size": 6}"#;
        check(bert, Some(&format!("{MODULES}{dense}")), None);
        check(bert, Some("{}"), None);
        check("{}", None, None);
        check(r#"{"architectures": [], "hidden_size": 6}"#, None, None);
        check("no object", None, None);
        assert_eq!(Makes::of(Path::new("/nowhere/at-all")), None);
    }
}
