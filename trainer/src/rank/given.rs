//! What a job gives a rank to begin with: the model, the objective, the schedule and the data; and whether they go together.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use model::{Device, LoadError, Overrides, Task, Tokenizer, Trainee};

use super::together;
use crate::checkpoint::{self, Checkpoints};
use crate::collective::{Collective, Place};
use crate::data::{
    BySet, Collator, Corpus, Custom, Drawing, Mixed, Order, Part, Random, Reader, Reading, Rest, Stream,
    Taught, Wording, by_file, files,
};
use crate::error::TrainError;
use crate::evaluate::{Directory, Evaluation, Misread, hold_out};
use crate::job::{Job, Kind};
use crate::loss::Vocabulary;
use crate::objective::Objective;
use crate::schedule::Schedule;

/// A try of what a rank begins with, on the processor and without a step.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a>(pub &'a Job);

impl Trial<'_> {
    /// Reads the tokenizer; fields of lengths that the model has no positions for, and what is wrong with each.
    ///
    /// # Errors
    /// [`TrainError::Model`] where there is no tokenizer.
    pub fn lengths(&self) -> Result<Vec<(&'static str, String)>, TrainError> {
        let found = windows(self.0, &tokenizer(self.0)?).into_iter();
        Ok(found.map(|(field, what)| (field, format!("it {what}"))).collect())
    }

    /// Loads the model with all that is trained of it.
    ///
    /// # Errors
    /// The field that keeps it from being loaded, and why.
    pub fn model(&self) -> Result<(), (&'static str, TrainError)> {
        let job = self.0;
        let load = || {
            let lacking = lacking(job)?;
            // Heads that are drawn anew go with any body.
            let task = if lacking.is_empty() { task(job) } else { Task::Dense };
            load_for(job, task, Device::Cpu, None).map(drop)
        };
        load().map_err(|error| {
            let is_adapters =
                job.use_lora && matches!(error, TrainError::Model(LoadError::Unsupported { .. }));
            let field = if matches!(error, TrainError::Unsupported(_)) {
                "use_lora"
            } else if is_adapters {
                "target_modules"
            } else {
                "model"
            };
            (field, error)
        })
    }

    /// Loads the guide, if there is one.
    ///
    /// # Errors
    /// [`TrainError::Model`].
    pub fn guide(&self) -> Result<(), TrainError> {
        guide(self.0, Device::Cpu).map(drop)
    }

    /// Reads what the model is evaluated on; what is wrong with it, by field.
    #[must_use]
    pub fn evaluation(&self) -> Vec<Misread> {
        let Some(data) = &self.0.evaluation else { return Vec::new() };
        match parts(self.0) {
            Ok((_, held)) => {
                Evaluation::read_all(data, &Corpus::new(held), self.0.kind).err().unwrap_or_default()
            }
            Err(error) => vec![("evaluation", error)],
        }
    }

    /// Cuts the data into batches for so many ranks.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`] where they do not fill one.
    pub fn data(&self, ranks: usize) -> Result<(), TrainError> {
        stream(self.0, Place { rank: 0, ranks }).map(drop)
    }
}

/// Lengths that the model has no positions for: the field, and what is wrong with it.
fn windows(job: &Job, tokenizer: &Tokenizer) -> Vec<(&'static str, String)> {
    let (window, query, passage) = (tokenizer.window(), job.query_max_len, job.passage_max_len);
    let wanted = match job.kind {
        Kind::Embedder => vec![("query_max_len", query), ("passage_max_len", passage)],
        Kind::Reranker => vec![("passage_max_len", query.saturating_add(passage))],
    };
    let together = if job.kind == Kind::Reranker { "together with query_max_len " } else { "" };
    let beyond = wanted.into_iter().filter(|(_, length)| *length > window);
    beyond
        .map(|(field, length)| {
            (field, format!("is {together}{length}, and the model has {window} positions"))
        })
        .collect()
}

fn tokenizer(job: &Job) -> Result<Tokenizer, TrainError> {
    Ok(Tokenizer::open(&job.model, &job.model.join("config.json"))?)
}

/// Reads the tokenizer.
pub(super) fn collator(job: &Job) -> Result<Collator, TrainError> {
    let tokenizer = tokenizer(job)?;
    let beyond: Vec<String> =
        windows(job, &tokenizer).into_iter().map(|(field, what)| format!("{field} {what}")).collect();
    if beyond.is_empty() {
        Ok(collator_of(job, tokenizer))
    } else {
        Err(TrainError::Unsupported(beyond.join("; ")))
    }
}

fn collator_of(job: &Job, tokenizer: Tokenizer) -> Collator {
    let Job { query_max_len, passage_max_len, .. } = *job;
    Collator { tokenizer, query_max_len, passage_max_len, pad_to_multiple_of: None }
}

/// The embedder that negatives are chosen with.
pub(super) fn guide(job: &Job, device: Device) -> Result<Option<Directory>, TrainError> {
    let open = |dir: &Path| Directory::open(dir, &Overrides::default(), device);
    job.guide_model.as_deref().map(open).transpose()
}

fn task(job: &Job) -> Task {
    match job.kind {
        Kind::Reranker => Task::Score,
        Kind::Embedder if job.unified_finetuning => Task::Unified,
        Kind::Embedder => Task::Dense,
    }
}

/// Heads of its task that the model of `job` lacks.
fn lacking(job: &Job) -> Result<Vec<&'static str>, TrainError> {
    let lacking = model::lacking_heads(&job.model, task(job))?;
    if job.use_lora && !lacking.is_empty() {
        let heads = lacking.join(", ");
        let what = format!(
            "use_lora is for models that have their heads, and this one lacks {heads}: drawn anew, they would not be trained"
        );
        return Err(TrainError::Unsupported(what));
    }
    Ok(lacking)
}

/// `job` with a model that has all heads of its task: where some are lacking, rank 0 draws them.
pub(super) fn completed<'a>(job: &'a Job, world: &impl Collective) -> Result<Cow<'a, Job>, TrainError> {
    let lacking = lacking(job)?;
    if lacking.is_empty() {
        return Ok(Cow::Borrowed(job));
    }
    let model = job.output_dir.join("initial");
    if world.place().rank == 0 && !model.exists() {
        let heads = lacking.join(", ");
        tracing::warn!("{} has no {heads}: drawn anew, and to be trained from nothing", job.model.display());
        let staged = model.with_file_name(".staged-initial");
        checkpoint::clear(&staged)?;
        fs::create_dir_all(&staged).map_err(|source| TrainError::io(&staged, source))?;
        seed(job);
        for written in model::complete_heads(&job.model, task(job), &staged)? {
            checkpoint::sync(&written)?;
        }
        checkpoint::place(&staged, &model)?;
    }
    together(world)?;
    Ok(Cow::Owned(Job { model, ..job.clone() }))
}

fn seed(job: &Job) {
    model::seed(i64::from_ne_bytes(job.seed.to_ne_bytes()));
}

/// The model of `job` on `device` as it was after a step, or initially, what is not to be trained frozen.
pub(super) fn load(
    job: &Job,
    device: Device,
    from: Option<(&Checkpoints, u64)>,
) -> Result<Trainee, TrainError> {
    load_for(job, task(job), device, from)
}

fn load_for(
    job: &Job,
    task: Task,
    device: Device,
    from: Option<(&Checkpoints, u64)>,
) -> Result<Trainee, TrainError> {
    let (config, manner) = (job.model.join("config.json"), job.manner());
    let whole = from.filter(|_| !job.use_lora);
    let weights = whole.map_or_else(|| job.model.clone(), |(checkpoints, step)| checkpoints.path(step));
    // Adapters begin alike on every rank.
    seed(job);
    let model = Trainee::load_for(&config, &weights, (task, &manner), device)?;
    if let Some((checkpoints, step)) = from.filter(|_| job.use_lora) {
        checkpoints.read_adapters(step, &model)?;
    }
    for parameter in model.parameters().iter().filter(|parameter| !job.trains(parameter.name())) {
        parameter.freeze()?;
    }
    Ok(model)
}

pub(super) fn objective(job: &Job, collator: &Collator) -> Result<Objective, TrainError> {
    Ok(Objective {
        contrast: job.contrast(),
        pooling: job.pooling().map_err(TrainError::Unsupported)?,
        normalize: job.normalize_embeddings,
        dimensions: job.mrl_dims.clone(),
        custom: Custom::Ours,
        unified: job
            .unified_finetuning
            .then(|| Vocabulary { markers: collator.tokenizer.markers().to_vec(), size: None }),
    })
}

pub(super) fn schedule(job: &Job, micro_steps: usize) -> Schedule {
    let per_epoch = micro_steps.div_ceil(job.gradient_accumulation_steps) as u64;
    let steps = job.max_steps.unwrap_or(per_epoch.saturating_mul(job.num_train_epochs));
    let warmup = Schedule::warmup_steps(job.warmup_steps, steps);
    Schedule { peak: job.learning_rate, warmup, steps, shape: job.lr_scheduler_type }
}

/// The files of a job, by where they were named, and what is held out of each.
type Parts = (Vec<(PathBuf, Vec<Part>)>, Vec<Part>);

fn parts(job: &Job) -> Result<Parts, TrainError> {
    let mut random = Random::new(job.seed);
    let mut named = Vec::new();
    for path in &job.train_data {
        let open = |path: &PathBuf| Part::open(path, job.max_example_num_per_dataset, &mut random);
        let parts = files(path)?.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        named.push((path.clone(), parts));
    }
    let mut held = Vec::new();
    if let Some(share) = job.evaluation.as_ref().and_then(|data| data.split) {
        for part in named.iter_mut().flat_map(|(_, parts)| parts) {
            let (rest, out) = part.clone().split(|line| hold_out(share, job.seed, line));
            *part = rest;
            held.push(out);
        }
    }
    Ok((named, held))
}

/// What this rank reads, and what is held out of it.
pub(super) fn stream(job: &Job, place: Place) -> Result<(Stream, Corpus), TrainError> {
    let Place { rank, ranks } = place;
    let (named, held) = parts(job)?;
    let batch = job.per_device_train_batch_size;
    let (corpus, order) = if job.same_dataset_within_batch {
        let thresholds = by_file::Thresholds { small: job.small_threshold, dropped: job.drop_threshold };
        let (sets, corpus) = by_file::sets(named, batch, thresholds)?;
        for set in sets.iter().filter(|set| rank == 0 && set.examples.len() < set.batch.saturating_mul(ranks))
        {
            let (first, count) = (set.examples.first().copied().unwrap_or(0), set.examples.len());
            let what =
                format!("{count} examples that begin here fill no batch on {ranks} ranks: none is read");
            tracing::warn!("{}", corpus.fault(first, what));
        }
        (corpus, Order::BySet(BySet::new(sets, ranks, job.seed)))
    } else {
        let corpus = Corpus::new(named.into_iter().flat_map(|(_, parts)| parts).collect());
        let rest = if job.dataloader_drop_last { Rest::Dropped } else { Rest::Filled };
        let examples = corpus.len();
        (corpus, Order::Mixed(Mixed { examples, batch, ranks, rest, seed: job.seed }))
    };
    let reading = Reading { rank, ranks, group_size: job.train_group_size, seed: job.seed };
    Ok((Stream::new(corpus, drawing(job), order, reading)?, Corpus::new(held)))
}

pub(super) fn drawing(job: &Job) -> Drawing {
    let word = |instruction: &Option<String>, format: &str| Wording {
        instruction: instruction.clone(),
        format: format.to_owned(),
    };
    Drawing {
        query: word(&job.query_instruction_for_retrieval, &job.query_instruction_format),
        passage: word(&job.passage_instruction_for_retrieval, &job.passage_instruction_format),
        shuffle_ratio: job.shuffle_ratio,
        taught: match (job.knowledge_distillation, job.same_dataset_within_batch) {
            (false, _) => Taught::No,
            (true, false) => Taught::Yes,
            (true, true) => Taught::WhereThere,
        },
        reader: match (job.kind, job.same_dataset_within_batch) {
            (Kind::Reranker, _) => Reader::CrossEncoder,
            (Kind::Embedder, true) => Reader::EmbedderByFile,
            (Kind::Embedder, false) => Reader::Embedder,
        },
        custom: Custom::Ours,
    }
}

/// What the model of `job` is evaluated on, if anything: the same for whoever measures it.
///
/// # Errors
/// [`TrainError::Io`]; [`TrainError::Format`] names the file and the line.
pub fn evaluation(job: &Job) -> Result<Option<Evaluation>, TrainError> {
    let Some(data) = &job.evaluation else { return Ok(None) };
    let read = || {
        let (_, held) = parts(job)?;
        Evaluation::read(data, &Corpus::new(held), job.kind).map(Some)
    };
    read().map_err(|error| error.named(&job.fetched))
}
