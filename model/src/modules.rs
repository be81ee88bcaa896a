//! The files that sentence-transformers adds to a checkpoint: pooling, normalisation, prompts, window.
//!
//! Without them nothing in a checkpoint says how its vectors are pooled, and libraries guess differently. We do
//! not guess: an embedder without `modules.json` is refused unless its pooling is given.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use crate::config::{read_json, read_json_if_there};
use crate::error::LoadError;

/// What sentence-transformers says of its first module.
const TRANSFORMER: &str = "sentence_bert_config.json";

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The first token's vector.
    Cls,
    /// The mean over all tokens.
    Mean,
    /// The last token's vector.
    Last,
}

impl FromStr for Pooling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cls" => Ok(Self::Cls),
            "mean" => Ok(Self::Mean),
            "last" | "lasttoken" => Ok(Self::Last),
            other => Err(format!("pooling is cls, mean or last, not {other:?}")),
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Last => "last",
        })
    }
}

/// What the sentence-transformers files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Modules {
    /// Absent where there is no `modules.json`.
    pub(crate) pooling: Option<Pooling>,
    pub(crate) normalize: bool,
    pub(crate) query_prompt: Option<String>,
    pub(crate) document_prompt: Option<String>,
    /// Tokens beyond which the checkpoint was not meant to read.
    pub(crate) max_tokens: Option<usize>,
    /// Texts are put into lower case before the tokenizer sees them.
    pub(crate) lowercase: bool,
    /// The files that say so, relative to the checkpoint.
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct ModuleFile {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct PoolingFile {
    pooling_mode: Option<String>,
    #[serde(default = "yes")]
    include_prompt: bool,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct TransformerFile {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize)]
struct PromptsFile {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

impl Modules {
    /// Whether texts are put into lower case, and nothing else of what `dir` says.
    pub(crate) fn lowercases(dir: &Path) -> Result<bool, LoadError> {
        let file = read_json_if_there::<TransformerFile>(&dir.join(TRANSFORMER))?;
        Ok(file.is_some_and(|file| file.do_lower_case))
    }

    /// Reads what there is below `dir`.
    pub(crate) fn load(dir: &Path) -> Result<Self, LoadError> {
        let mut found = Self::default();
        found.load_prompts(dir)?;
        found.load_transformer(dir)?;
        let list = dir.join("modules.json");
        let Some(modules) = read_json_if_there::<Vec<ModuleFile>>(&list)? else { return Ok(found) };
        found.files.push("modules.json".into());
        for module in modules {
            match module.kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" if module.path.is_empty() => {}
                "Pooling" => found.load_pooling(dir, &module.path)?,
                "Normalize" => found.normalize = true,
                _ => {
                    let what = format!("module {} at {:?} is not known", module.kind, module.path);
                    return Err(LoadError::unsupported(&list, what));
                }
            }
        }
        Ok(found)
    }

    fn load_prompts(&mut self, dir: &Path) -> Result<(), LoadError> {
        let file = "config_sentence_transformers.json";
        let Some(mut read) = read_json_if_there::<PromptsFile>(&dir.join(file))? else { return Ok(()) };
        self.files.push(file.into());
        self.query_prompt = read.prompts.remove("query").filter(|prompt| !prompt.is_empty());
        let document = read.prompts.remove("document").or_else(|| read.prompts.remove("passage"));
        self.document_prompt = document.filter(|prompt| !prompt.is_empty());
        Ok(())
    }

    fn load_transformer(&mut self, dir: &Path) -> Result<(), LoadError> {
        let file = TRANSFORMER;
        let Some(read) = read_json_if_there::<TransformerFile>(&dir.join(file))? else { return Ok(()) };
        self.files.push(file.into());
        self.max_tokens = read.max_seq_length;
        self.lowercase = read.do_lower_case;
        Ok(())
    }

    fn load_pooling(&mut self, dir: &Path, below: &str) -> Result<(), LoadError> {
        let file = inside(dir, below)?.join("config.json");
        let path = dir.join(&file);
        let read: PoolingFile = read_json(&path)?;
        if !read.include_prompt {
            return Err(LoadError::unsupported(&path, "include_prompt false is not known"));
        }
        let pooling = match read.pooling_mode {
            Some(mode) => mode,
            None => single_mode(&read.others).map_err(|reason| LoadError::unsupported(&path, reason))?,
        };
        self.pooling = Some(pooling.parse().map_err(|reason: String| LoadError::unsupported(&path, reason))?);
        self.files.push(file);
        Ok(())
    }
}

/// A module's folder, which must not climb out of the checkpoint.
fn inside(dir: &Path, below: &str) -> Result<PathBuf, LoadError> {
    let path = PathBuf::from(below);
    if path.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        Ok(path)
    } else {
        let reason = format!("module path {below:?} leads out of the checkpoint");
        Err(LoadError::format(&dir.join("modules.json"), reason))
    }
}

/// The one `pooling_mode_*` that is on.
fn single_mode(fields: &BTreeMap<String, serde_json::Value>) -> Result<String, String> {
    let names = [("cls_token", "cls"), ("mean_tokens", "mean"), ("lasttoken", "last")];
    let on: Vec<&str> = fields
        .iter()
        .filter(|(_, value)| **value == serde_json::Value::Bool(true))
        .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
        .collect();
    let [mode] = on.as_slice() else {
        return Err(format!("exactly one pooling mode is wanted, found [{}]", on.join(", ")));
    };
    let known = names.into_iter().find_map(|(field, name)| (field == *mode).then_some(name));
    known.map(str::to_owned).ok_or_else(|| format!("pooling mode {mode} is not known"))
}
