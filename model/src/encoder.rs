//! A checkpoint on a device, ready to run.

use tch::{Kind as Number, Tensor};

use crate::body::Body;
use crate::checkpoint::Checkpoint;
use crate::config::Kind;
use crate::device::{Device, Instructions, Precision, candidates};
use crate::dropout::Dropout;
use crate::error::{LoadError, RunError};
use crate::head::{Classifier, Head};
use crate::layers::Loader;
use crate::layout::Layout;
use crate::sequence::{Rows, Sequence};
use crate::tokenizer::Truncation;
use crate::weights::Weights;

/// Cosine that vectors in reduced precision must keep with those in single precision.
const FAITHFUL_COSINE: f64 = 0.999;
/// Difference that a cross-encoder's probability may show in reduced precision.
const FAITHFUL_PROBABILITY: f64 = 0.01;
/// Short and long, plain and odd: what reduced precision is tried on.
const TRIALS: [&str; 4] = [
    "the quick brown fox",
    "What does a checkpoint's digest say about the vectors that were made with it?",
    "Δ = 3.14159; 苹果 and apples; fn main() { println!(\"hello\"); }",
    "A vector means something only in its own space. Two checkpoints of one model put the same sentence in two \
     different places, and a search that mixes them returns neighbours by accident. That is why every answer \
     names the checkpoint that made it, and why an index is built by one checkpoint alone.",
];

/// A model on one device. It is used by one thread at a time, and may be moved between threads.
#[derive(Debug)]
pub struct Model {
    body: Body,
    head: Head,
    kind: Number,
}

impl Model {
    /// Loads the checkpoint's weights onto the device; see [`Precision`] for the kind of number.
    ///
    /// # Errors
    /// A [`LoadError`] that names the file and the tensor, or why the device cannot run it.
    pub fn load(checkpoint: &Checkpoint, device: Device, precision: Precision) -> Result<Self, LoadError> {
        let kinds = candidates(device, precision, Instructions::detect())?;
        let [_, .., fallback] = *kinds.as_slice() else {
            return Self::load_as(checkpoint, device, kinds[0]);
        };
        let trials = trials(checkpoint)?;
        let trials: Vec<&Sequence> = trials.iter().collect();
        let answers = |model: &Self| model.run(&trials).map_err(|error| error.to_string());
        // One at a time: both together would take twice the memory.
        let reference = answers(&Self::load_as(checkpoint, device, fallback)?).map_err(LoadError::Torch)?;
        let judge = |model: &Self| {
            let found = if model.kind == fallback { return Ok(()) } else { answers(model)? };
            unfaithful(checkpoint.card().kind, &reference, &found).map_or(Ok(()), Err)
        };
        let judged = Self::load_judged(checkpoint, (device, precision), judge)?;
        judged.map(|(model, ())| model).map_err(LoadError::Torch)
    }

    /// As [`load`](Self::load), in the first kind of number of which `judge` approves: it runs what it knows the
    /// answers of. Answers the model and what `judge` says of it, or why it approves of none.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_judged<V>(
        checkpoint: &Checkpoint,
        (device, precision): (Device, Precision),
        judge: impl Fn(&Self) -> Result<V, String>,
    ) -> Result<Result<(Self, V), String>, LoadError> {
        let mut refusal = String::new();
        for kind in candidates(device, precision, Instructions::detect())? {
            let model = Self::load_as(checkpoint, device, kind)?;
            match judge(&model) {
                Ok(verdict) => return Ok(Ok((model, verdict))),
                Err(reason) => {
                    tracing::warn!(dtype = name(kind), reason, "the checkpoint is not true to itself");
                    refusal = reason;
                }
            }
        }
        Ok(Err(refusal))
    }

    fn load_as(checkpoint: &Checkpoint, device: Device, kind: Number) -> Result<Self, LoadError> {
        let _guard = tch::no_grad_guard();
        let weights = Weights::open(checkpoint.dir())?;
        let loader = Loader { weights: &weights, device: device.torch(), kind, trained: None };
        let head = match checkpoint.card().pooling {
            Some(pooling) => Head::Pool(pooling),
            None => Head::Classify(Classifier::load(&loader, checkpoint.config())?),
        };
        let body = Body::load(&loader, checkpoint.config())?;
        torch_ext::trim_memory();
        Ok(Self { body, head, kind })
    }

    /// Gives its memory back, to the operating system where it was the process's. Takes a while.
    pub fn unload(self) {
        drop(self);
        torch_ext::trim_memory();
    }

    /// The kind of number it runs in: `f32`, `bf16` or `f16`.
    #[must_use]
    pub fn dtype(&self) -> &'static str {
        name(self.kind)
    }

    /// Runs a batch. An embedder gives pooled vectors, not normalised, `[sequences, dimensions]`; a cross-encoder
    /// gives logits, `[sequences, 1]`. A sequence's row does not depend on its neighbours beyond rounding.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`], for which a smaller batch may do, or [`RunError::Failed`].
    pub fn run(&self, batch: &[&Sequence]) -> Result<Rows, RunError> {
        if batch.iter().any(|sequence| sequence.tokens() == 0) || batch.is_empty() {
            return Err(RunError::Failed("a batch of sequences of at least one token is wanted".into()));
        }
        let _guard = tch::no_grad_guard();
        let layout =
            if self.body.on_processor() { Layout::new(batch).round_up() } else { Layout::new(batch) };
        let hidden = self.body.forward(&layout, &Dropout::NONE)?; // [tokens, hidden]
        let rows = self.head.forward(&hidden, &layout, &Dropout::NONE)?; // [sequences, width]
        host(&rows)
    }
}

fn host(rows: &Tensor) -> Result<Rows, RunError> {
    let rows = rows.f_to_device(tch::Device::Cpu)?.f_to_kind(Number::Float)?.f_contiguous()?;
    let mut data = vec![0.0; rows.numel()];
    rows.f_copy_data(&mut data, rows.numel())?;
    let width = rows.size().last().and_then(|&width| usize::try_from(width).ok()).unwrap_or(1);
    Ok(Rows::new(width, data))
}

fn name(kind: Number) -> &'static str {
    if kind == Number::BFloat16 {
        "bf16"
    } else if kind == Number::Half {
        "f16"
    } else {
        "f32"
    }
}

fn trials(checkpoint: &Checkpoint) -> Result<Vec<Sequence>, LoadError> {
    let tokenizer = checkpoint.tokenizer()?;
    let encode = |text: &&str| match checkpoint.card().kind {
        Kind::Embedder => tokenizer.encode(text, Truncation::End),
        Kind::CrossEncoder => tokenizer.encode_pair(TRIALS[0], text, Truncation::End),
    };
    let trials: Result<_, _> = TRIALS.iter().map(encode).collect();
    trials.map_err(|error| LoadError::format(checkpoint.dir(), error))
}

/// Why `found` is not true to `reference`, if it is not.
fn unfaithful(kind: Kind, reference: &Rows, found: &Rows) -> Option<String> {
    let pairs = reference.iter().zip(found);
    match kind {
        Kind::Embedder => {
            let worst = pairs.map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
            // A cosine that is not a number is unfaithful too.
            let faithful = worst >= FAITHFUL_COSINE;
            (!faithful).then(|| format!("cosine {worst:.5} is below {FAITHFUL_COSINE}"))
        }
        Kind::CrossEncoder => {
            let probability = |logit: f32| 1.0 / (1.0 + (-f64::from(logit)).exp());
            let worst = pairs.map(|(a, b)| (probability(a[0]) - probability(b[0])).abs()).fold(0.0, f64::max);
            let faithful = worst <= FAITHFUL_PROBABILITY;
            (!faithful)
                .then(|| format!("probabilities differ by {worst:.4}, more than {FAITHFUL_PROBABILITY}"))
        }
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, reference: [f32; 2], found: [f32; 2], expected: Option<&str>) {
        let rows = |row: [f32; 2]| Rows::new(if kind == Kind::Embedder { 2 } else { 1 }, row.to_vec());
        let reason = unfaithful(kind, &rows(reference), &rows(found));
        match (reason, expected) {
            (None, None) => {}
            (Some(reason), Some(part)) => assert!(reason.contains(part), "{reason}"),
            (reason, _) => panic!("{reason:?}"),
        }
    }

    #[test]
    fn reduced_precision_must_stay_true() {
        check(Kind::Embedder, [1.0, 2.0], [1.001, 2.0], None);
        check(Kind::Embedder, [1.0, 2.0], [2.0, 1.0], Some("cosine 0.80000"));
        check(Kind::CrossEncoder, [0.0, -9.0], [0.01, -8.0], None);
        check(Kind::CrossEncoder, [0.0, 3.0], [0.5, 3.0], Some("differ by 0.1225"));
    }
}
