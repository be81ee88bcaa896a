//! The finished model: a directory that Beige's worker, `transformers` and sentence-transformers load as it is.
//!
//! The reference writes no sentence-transformers files, and whoever loads its checkpoints with that library pools
//! otherwise than they were trained.

use std::fs;
use std::path::Path;

use model::{Pooling, Trainee};
use serde_json::{Value, json};

use crate::checkpoint::{self, clear, place, sync};
use crate::data::Wording;
use crate::error::TrainError;
use crate::golden;
use crate::job::{Job, Kind};

/// Files of the initial checkpoint that say what the trained one is too.
const COPIED: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
];

/// Writes the trained model to `to`, whole or not at all; then, beside it, what it makes of the
/// [golden inputs](crate::golden).
///
/// # Errors
/// [`TrainError::Io`] names the file that could not be written; as [`golden::write`], and then the model is there.
pub fn write(job: &Job, model: &Trainee, to: &Path) -> Result<(), TrainError> {
    let staged = to.with_file_name(".staged-model");
    clear(&staged)?;
    fs::create_dir_all(&staged).map_err(|source| TrainError::io(&staged, source))?;
    for name in COPIED {
        let (from, copy) = (job.model.join(name), staged.join(name));
        if from.exists() {
            fs::copy(&from, &copy).map_err(|source| TrainError::io(&copy, source))?;
            sync(&copy)?;
        }
    }
    match job.kind {
        Kind::Embedder => sentence_transformers(job, &staged)?,
        Kind::Reranker => prompts(job, &staged)?,
    }
    let weights = staged.join("model.safetensors");
    model.save(&weights)?;
    sync(&weights)?;
    for head in model.save_heads(&staged)? {
        sync(&head)?;
    }
    place(&staged, to)?;
    golden::write(job, to, &to.with_file_name(golden::FILE))
}

fn sentence_transformers(job: &Job, dir: &Path) -> Result<(), TrainError> {
    let modules = ["Transformer", "Pooling", "Normalize"];
    let modules = &modules[..if job.normalize_embeddings { 3 } else { 2 }];
    let module = |(place, name): (usize, &&str)| {
        let path = if place == 0 { String::new() } else { format!("{place}_{name}") };
        let kind = format!("sentence_transformers.models.{name}");
        json!({"idx": place, "name": place.to_string(), "path": path, "type": kind})
    };
    let modules: Vec<Value> = modules.iter().enumerate().map(module).collect();
    file(dir, "modules.json", &Value::Array(modules))?;
    let pooling = job.pooling().map_err(TrainError::Unsupported)?;
    file(
        dir,
        "1_Pooling/config.json",
        &json!({
            "word_embedding_dimension": width(&job.model)?,
            "pooling_mode_cls_token": pooling == Pooling::Cls,
            "pooling_mode_mean_tokens": pooling == Pooling::Mean,
            "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
            "pooling_mode_lasttoken": pooling == Pooling::Last,
        }),
    )?;
    if job.normalize_embeddings {
        let normalize = dir.join("2_Normalize");
        fs::create_dir_all(&normalize).map_err(|source| TrainError::io(&normalize, source))?;
    }
    let window = initial(&job.model, "sentence_bert_config.json")?;
    if let Some(window) = window {
        file(dir, "sentence_bert_config.json", &window)?;
    }
    prompts(job, dir)
}

/// The job's instructions as prompts for queries and documents, empty ones where it had none: the model was trained
/// without. Prompts of other names are those of the initial checkpoint.
fn prompts(job: &Job, dir: &Path) -> Result<(), TrainError> {
    let mut config = initial(&job.model, "config_sentence_transformers.json")?.unwrap_or_else(|| json!({}));
    let instructions = [
        ("query", &job.query_instruction_for_retrieval, &job.query_instruction_format),
        ("document", &job.passage_instruction_for_retrieval, &job.passage_instruction_format),
    ];
    for (name, instruction, format) in instructions {
        let wording = Wording { instruction: instruction.clone(), format: format.clone() };
        // What comes before the text: a prompt has no place behind it.
        let before = wording.around().map(|(before, _)| before).unwrap_or_default();
        config["prompts"][name] = json!(before);
    }
    if config.get("default_prompt_name").is_none() {
        config["default_prompt_name"] = Value::Null;
    }
    file(dir, "config_sentence_transformers.json", &config)
}

fn width(model: &Path) -> Result<Value, TrainError> {
    let config = initial(model, "config.json")?.unwrap_or_default();
    Ok(config["hidden_size"].clone())
}

/// A JSON object of the initial checkpoint.
fn initial(model: &Path, name: &str) -> Result<Option<Value>, TrainError> {
    let path = model.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).map_err(|source| TrainError::io(&path, source))?;
    let value: Value = serde_json::from_slice(&text).map_err(|error| TrainError::format(&path, error))?;
    if value.is_object() { Ok(Some(value)) } else { Err(TrainError::format(&path, "it is no JSON object")) }
}

fn file(dir: &Path, name: &str, value: &Value) -> Result<(), TrainError> {
    let path = dir.join(name);
    let around = path.parent().unwrap_or(dir);
    fs::create_dir_all(around).map_err(|source| TrainError::io(around, source))?;
    checkpoint::write(&path, &checkpoint::json(value))?;
    sync(around)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &Value, expected: &str) {
        let (model, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut job =
            json!({ "kind": "embedder", "model": model.path(), "output_dir": "o", "train_data": ["d"] });
        for (field, value) in query.as_object().unwrap() {
            job[format!("query_instruction_{field}")] = value.clone();
        }
        prompts(&serde_json::from_value(job).unwrap(), dir.path()).unwrap();
        let written = initial(dir.path(), "config_sentence_transformers.json").unwrap().unwrap();
        assert_eq!(written["prompts"], json!({ "query": expected, "document": "" }));
    }

    #[test]
    fn a_prompt_is_what_was_put_before_the_text() {
        check(&json!({}), "");
        check(&json!({ "for_retrieval": "Ask: " }), "Ask: ");
        check(&json!({ "for_retrieval": "Ask", "format": "<{}>\n{}" }), "<Ask>\n");
        check(&json!({ "for_retrieval": "Ask", "format": "{0}: {1}" }), "Ask: ");
        check(&json!({ "for_retrieval": "Ask", "format": "{{{1}}} {0}" }), "{");
        check(&json!({ "for_retrieval": "Fill {} in: " }), "Fill {} in: ");
    }
}
