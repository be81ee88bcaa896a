//! A checkpoint in a directory, as it is served.

use std::path::Path;

use model::{
    Checkpoint, Device, Kind, Model, Overrides, Precision, Sequence, TokenizeError, Tokenizer, Truncation,
    normalized,
};
use tch::Tensor;

use super::{Embed, List, Role, Score, in_batches};
use crate::error::TrainError;

/// An embedder as workers run it, prompts and window included.
#[derive(Debug)]
pub struct Directory {
    model: Model,
    tokenizer: Tokenizer,
    prompts: [String; 2],
    normalize: bool,
}

impl Directory {
    /// Loads the checkpoint in `dir`, in f32, to be run on `device`.
    ///
    /// # Errors
    /// [`TrainError::Model`]; [`TrainError::Unsupported`] for a cross-encoder.
    pub fn open(dir: &Path, overrides: &Overrides, device: Device) -> Result<Self, TrainError> {
        let checkpoint = Checkpoint::open(dir, overrides)?;
        if checkpoint.card().kind != Kind::Embedder {
            let what = format!("{}: a cross-encoder makes no vectors to be evaluated", dir.display());
            return Err(TrainError::Unsupported(what));
        }
        Self::load(&checkpoint, device)
    }

    /// Loads a checkpoint that is an embedder's, in f32, to be run on `device`.
    ///
    /// # Errors
    /// [`TrainError::Model`].
    pub fn load(checkpoint: &Checkpoint, device: Device) -> Result<Self, TrainError> {
        let card = checkpoint.card();
        let prompts =
            [&card.query_prompt, &card.document_prompt].map(|prompt| prompt.clone().unwrap_or_default());
        let (tokenizer, normalize) = (checkpoint.tokenizer()?, card.normalize);
        let model = Model::load(checkpoint, device, Precision::F32)?;
        Ok(Self { model, tokenizer, prompts, normalize })
    }

    /// Rows of texts without their prompts, `[texts, dimensions]`, f32, as they are served; on the processor.
    ///
    /// # Errors
    /// [`TrainError::OutOfMemory`], [`TrainError::Torch`].
    pub fn rows(&self, texts: &[String]) -> Result<Tensor, TrainError> {
        let encode = |text: &String| self.tokenizer.encode(text, Truncation::End);
        let rows = rows(&self.model, texts.iter().map(encode))?;
        Ok(if self.normalize { normalized(&rows)? } else { rows })
    }
}

/// A row per sequence, in order.
fn rows(
    model: &Model,
    sequences: impl Iterator<Item = Result<Sequence, TokenizeError>>,
) -> Result<Tensor, TrainError> {
    let sequences = sequences.collect::<Result<Vec<_>, _>>();
    let sequences = sequences.map_err(|error| TrainError::Torch(error.to_string()))?;
    in_batches(&sequences, |batch| {
        let batch: Vec<&Sequence> = batch.iter().collect();
        let rows = model.run(&batch)?;
        let width = rows.iter().next().map_or(0, <[f32]>::len);
        let numbers: Vec<f32> = rows.iter().flatten().copied().collect();
        Ok(Tensor::f_from_slice(&numbers)?.f_view([-1, i64::try_from(width).unwrap_or(0)])?)
    })
}

impl Embed for Directory {
    fn embed(&mut self, texts: &[String], role: Role) -> Result<Tensor, TrainError> {
        let prompt = &self.prompts[usize::from(role == Role::Passage)];
        self.rows(&texts.iter().map(|text| format!("{prompt}{text}")).collect::<Vec<_>>())
    }
}

/// A cross-encoder as workers run it, prompts and window included.
#[derive(Debug)]
pub struct CrossEncoder {
    model: Model,
    tokenizer: Tokenizer,
    prompts: [String; 2],
}

impl CrossEncoder {
    /// Loads the checkpoint in `dir`, in f32.
    ///
    /// # Errors
    /// [`TrainError::Model`]; [`TrainError::Unsupported`] for an embedder.
    pub fn open(dir: &Path, overrides: &Overrides) -> Result<Self, TrainError> {
        let checkpoint = Checkpoint::open(dir, overrides)?;
        if checkpoint.card().kind != Kind::CrossEncoder {
            let what = format!("{}: an embedder reads no pairs", dir.display());
            return Err(TrainError::Unsupported(what));
        }
        Self::load(&checkpoint)
    }

    /// Loads a checkpoint that is a cross-encoder's, in f32.
    ///
    /// # Errors
    /// [`TrainError::Model`].
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, TrainError> {
        let card = checkpoint.card();
        let prompts =
            [&card.query_prompt, &card.document_prompt].map(|prompt| prompt.clone().unwrap_or_default());
        let tokenizer = checkpoint.tokenizer()?;
        Ok(Self { model: Model::load(checkpoint, Device::Cpu, Precision::F32)?, tokenizer, prompts })
    }
}

impl Score for CrossEncoder {
    fn score(&mut self, lists: &[List]) -> Result<Vec<f32>, TrainError> {
        let pairs = lists.iter().flat_map(|List { query, passages }| {
            let [before_query, before_passage] = &self.prompts;
            let query = format!("{before_query}{query}");
            let pair = |passage: &String| {
                let passage = format!("{before_passage}{passage}");
                self.tokenizer.encode_pair(&query, &passage, Truncation::End)
            };
            passages.iter().map(pair).collect::<Vec<_>>()
        });
        Ok(Vec::try_from(rows(&self.model, pairs)?.f_view([-1])?)?)
    }
}
