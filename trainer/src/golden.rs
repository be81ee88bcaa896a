//! What a finished model makes of the golden inputs, by the code that trained it. Workers, who run models by code of their
//! own, are held to it once the model is published.

use std::path::Path;

use cluster::{Golden, ModelKind};
use model::{
    Checkpoint, Device, Dropout, Laying, Overrides, Sequence, Task, TokenizeError, Trainee, Truncation,
    normalized,
};
use proto::v1::GoldenSample;

use crate::checkpoint;
use crate::error::TrainError;
use crate::job::{Job, Kind};

/// The file of them, beside the finished model: it is no part of the checkpoint.
pub const FILE: &str = "golden.jsonl";

/// Writes what the finished model of `job`, which lies in `dir`, makes of the golden inputs to the file `to`, as
/// [`publisher::golden`] reads it. The model is run by the processor in f32, whatever it was trained in.
///
/// # Errors
/// [`TrainError`], where the model cannot be read or run, or the file cannot be written.
pub fn write(job: &Job, dir: &Path, to: &Path) -> Result<(), TrainError> {
    let lines: Vec<String> = samples(job, dir)?.iter().map(publisher::golden_line).collect();
    checkpoint::write(to, format!("{}\n", lines.join("\n")).as_bytes())
}

fn samples(job: &Job, dir: &Path) -> Result<Vec<GoldenSample>, TrainError> {
    let _guard = tch::no_grad_guard();
    let (kind, task) = match job.kind {
        Kind::Embedder => (ModelKind::Embedder, Task::Dense),
        Kind::Reranker => (ModelKind::CrossEncoder, Task::Score),
    };
    let tokenizer = Checkpoint::open(dir, &Overrides::default())?.tokenizer()?;
    let model = Trainee::load(&dir.join("config.json"), dir, task, Device::Cpu)?;
    let sample = |(query, text): (Option<&str>, &str)| {
        let sequence = match query {
            None => tokenizer.encode(text, Truncation::End),
            Some(query) => tokenizer.encode_pair(query, text, Truncation::End),
        };
        let failed = |error: TokenizeError| {
            TrainError::Unsupported(format!("a golden input is not tokenised: {error}"))
        };
        let sequence = sequence.map_err(failed)?;
        let (text, query) = (text.to_owned(), query.map(str::to_owned));
        Ok(if kind == ModelKind::Embedder {
            let numbers = embedding(job, &model, &sequence)?;
            let embedding = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            GoldenSample { text, query, embedding, score: None }
        } else {
            let score = Some(score(&model, &sequence)?);
            GoldenSample { text, query, embedding: Vec::new(), score }
        })
    };
    Golden::inputs(kind).map(sample).collect()
}

/// A text's vector, pooled and normalised as it was trained, `[dimensions]`.
fn embedding(job: &Job, model: &Trainee, sequence: &Sequence) -> Result<Vec<f32>, TrainError> {
    let hidden = model.hidden(&[sequence], Laying::EndToEnd, &Dropout::NONE)?;
    let rows = model.pooled(&hidden, job.pooling().map_err(TrainError::Unsupported)?)?;
    let rows = if job.normalize_embeddings { normalized(&rows)? } else { rows };
    Ok(Vec::try_from(rows.f_view([-1])?)?)
}

/// A pair's score, between 0 and 1.
fn score(model: &Trainee, sequence: &Sequence) -> Result<f32, TrainError> {
    let hidden = model.hidden(&[sequence], Laying::EndToEnd, &Dropout::NONE)?;
    let score = model.logits(&hidden, &Dropout::NONE)?.f_sigmoid()?.f_double_value(&[0])?;
    #[allow(clippy::cast_possible_truncation)] // It was an f32.
    let score = score as f32;
    Ok(score)
}
