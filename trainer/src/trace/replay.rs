//! The run itself, again: all ranks in one process, each rank's loss, their mean, the optimiser's step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use model::{Device, Dropout, Manner, Task, Trainee};
use tch::{Kind, Tensor};

use super::batches::{self, Recorded, Texts};
use super::gradients;
use super::hyperparameters::{Hyperparameters, RunKind, Training, our_name};
use super::recorded::{self, FinalTensor, MicroStep};
use super::report::{Report, Row};
use super::samples;
use super::source::{Places, Source};
use crate::data::Custom;
use crate::error::TrainError;
use crate::loss::{self, GradientScale, Known, Loss, Negatives, Tokens, Vocabulary};
use crate::objective::{Embedded, Objective, Rows, Side, teacher};
use crate::optimizer::{Optimizer, decays};

/// The tolerances of TRAINING.md, section 3: absolute, or relative to a loss above 1.
const FIRST_LOSS: f64 = 1e-6;
const LOSS: f64 = 1e-5;
/// Relative.
const NORM: f64 = 1e-4;
/// Relative, of the norm of final minus initial weights of a tensor.
const DISTANCE: f64 = 1e-3;
/// Absolute.
const RATE: f64 = 1e-12;

/// A trace, opened.
#[derive(Debug)]
pub struct Replay {
    dir: PathBuf,
    settings: Hyperparameters,
    source: Source,
    /// `[rank][micro step]`.
    batches: Vec<Vec<Recorded>>,
    losses: Vec<Vec<MicroStep>>,
    /// How far each tensor went, where that is told.
    distances: Option<BTreeMap<String, f64>>,
}

/// Replays the run in the folder `dir`.
///
/// # Errors
/// [`TrainError`] when the folder cannot be read, or asks for what is not replayed. Differences are not errors: they
/// are in the report.
pub fn replay(dir: &Path, places: &Places) -> Result<Report, TrainError> {
    let replay = Replay::open(dir, places)?;
    let mut report = Report::default();
    replay.run(&mut report)?;
    Ok(report)
}

impl Replay {
    /// Reads everything but the model.
    ///
    /// # Errors
    /// As [`replay`].
    pub fn open(dir: &Path, places: &Places) -> Result<Self, TrainError> {
        let settings = Hyperparameters::load(dir)?;
        let source = Source::find(dir, &settings, places)?;
        let ranks = 0..settings.world_size;
        let batches = ranks.clone().map(|rank| batches::read(&dir.join(format!("batches_rank{rank}.npz"))));
        let batches = batches.collect::<Result<Vec<_>, _>>()?;
        let accumulated = settings.training.gradient_accumulation_steps;
        let losses = ranks.map(|rank| recorded::losses(dir, rank, accumulated));
        let losses = losses.collect::<Result<Vec<_>, _>>()?;
        let distance = |(name, tensor): (String, FinalTensor)| (our_name(&name).to_owned(), tensor.delta_l2);
        let distances =
            recorded::final_weights(dir)?.map(|finals| finals.into_iter().map(distance).collect());
        let steps = losses.first().map_or(0, Vec::len);
        if steps == 0 || losses.iter().any(|l| l.len() != steps) || batches.iter().any(|b| b.len() < steps) {
            return Err(TrainError::format(dir, "ranks do not have a batch and a loss for each micro step"));
        }
        Ok(Self { dir: dir.to_owned(), settings, source, batches, losses, distances })
    }

    fn run(&self, report: &mut Report) -> Result<(), TrainError> {
        let task = match (self.settings.kind, self.settings.m3.unified_finetuning) {
            (RunKind::Reranker, _) => Task::Score,
            (RunKind::Embedder | RunKind::M3, true) => Task::Unified,
            (RunKind::Embedder | RunKind::M3, false) => Task::Dense,
        };
        let manner = Manner { as_pytorch: true, ..Manner::default() };
        let model =
            Trainee::load_for(&self.source.config, &self.source.weights, (task, &manner), Device::Cpu)?;
        let objective = self.objective(&model)?;
        for parameter in model.parameters().iter().filter(|p| !self.settings.trains(p.name())) {
            parameter.freeze()?;
        }
        self.samples(report)?;
        report.rows.push(self.groups(&model));
        let before = copies(&model)?;
        let optimizer = Optimizer::new(model.parameters(), self.settings.optimizer())?;
        let ranks = (0..self.settings.world_size).map(|_| Accumulated::default()).collect();
        let mut run = Run { replay: self, objective, model: &model, optimizer, ranks };
        report.rows.extend(run.steps(report.notes.as_mut())?);
        if let Some(recorded) = &self.distances {
            report.rows.push(distances(recorded, &model, &before)?);
        } else {
            report.notes.push("there is no final_weights.json: final weights are not compared".to_owned());
        }
        Ok(())
    }

    fn objective(&self, model: &Trainee) -> Result<Objective, TrainError> {
        let Hyperparameters { embedder, m3, .. } = &self.settings;
        let words = model.parameters().iter().find(|p| p.name().ends_with("word_embeddings.weight"));
        let size = words.and_then(|words| words.tensor().size().first().copied());
        let vocabulary = match (&self.source.tokenizer, m3.unified_finetuning) {
            (_, false) => None,
            (Some(dir), true) => Some(Vocabulary {
                markers: model::Tokenizer::open_bare(dir, &self.source.config)?.markers().to_vec(),
                size: size.and_then(|size| u32::try_from(size).ok()),
            }),
            (None, true) => {
                let what = "unified_finetuning is not replayed without the model's tokenizer";
                return Err(TrainError::Unsupported(what.to_owned()));
            }
        };
        Ok(Objective {
            contrast: self.settings.contrast()?,
            pooling: self.settings.pooling()?,
            normalize: embedder.normalize_embeddings.unwrap_or(true),
            dimensions: if embedder.use_mrl { embedder.mrl_dims.clone() } else { Vec::new() },
            custom: Custom::FlagEmbedding,
            unified: vocabulary,
        })
    }

    fn samples(&self, report: &mut Report) -> Result<(), TrainError> {
        let Training { dataloader_num_workers: workers, .. } = &self.settings.training;
        let there = |name: &PathBuf| self.source.root.join(name).exists();
        if *workers > 0 {
            report.notes.push(format!("dataloader_num_workers {workers}: samples are not rebuilt"));
        } else if !self.settings.tells_batch_size() {
            let why = "there is neither argv nor a batch size: samples are not rebuilt";
            report.notes.push(why.to_owned());
        } else if !self.settings.data.train_data.iter().all(there)
            || !self.dir.join("samples_rank0.jsonl").exists()
        {
            report
                .notes
                .push("the data files or the samples are not there: samples are not rebuilt".to_owned());
        } else {
            report.rows.extend(samples::compare(&self.dir, &self.settings, &self.source, &self.batches)?);
        }
        if self.source.tokenizer.is_none() {
            report.notes.push("the model has no tokenizer here: token batches are not rebuilt".to_owned());
        }
        Ok(())
    }

    /// Which tensors decay and which are frozen, by our rules and by the record: differences in number.
    fn groups(&self, model: &Trainee) -> Row {
        let mut row = Row::new("decayed and frozen tensors", Some(0.0));
        let recorded = |names: &[String]| -> BTreeSet<String> {
            names.iter().map(|name| our_name(name).to_owned()).collect()
        };
        let decayed = self.settings.weight_decay_tensors.as_deref().map(recorded);
        let frozen = self.settings.frozen.as_deref().map(recorded);
        for parameter in model.parameters() {
            let name = our_name(parameter.name());
            let trains = parameter.tensor().requires_grad();
            let decayed = decayed.as_ref().map(|decayed| decayed.contains(name));
            let frozen = frozen.as_ref().map(|frozen| frozen.contains(name));
            let wrong = (trains && decayed.is_some_and(|decayed| decayed != decays(name)))
                || frozen.is_some_and(|frozen| frozen == trains);
            row.take(f64::from(u8::from(wrong)), || name.to_owned());
        }
        row
    }
}

/// How far each tensor went, and how far it went in the record.
fn distances(
    recorded: &BTreeMap<String, f64>,
    model: &Trainee,
    before: &[Tensor],
) -> Result<Row, TrainError> {
    let mut row = Row::new("final minus initial, norms", Some(DISTANCE));
    for (parameter, before) in model.parameters().iter().zip(before) {
        let name = our_name(parameter.name());
        let Some(&recorded) = recorded.get(name) else {
            row.take(f64::INFINITY, || format!("{name}, which the record lacks"));
            continue;
        };
        if moves_by_rounding(name) {
            continue;
        }
        let distance = parameter.tensor().f_detach()?.f_sub(before)?.f_to_kind(Kind::Double)?.f_norm()?;
        let distance = distance.f_double_value(&[])?;
        // A frozen tensor went nowhere, and nowhere is 0.
        let difference = (distance - recorded).abs() / recorded.abs().max(f64::MIN_POSITIVE);
        let same = distance.to_bits() == recorded.to_bits();
        row.take(if same { 0.0 } else { difference }, || name.to_owned());
    }
    Ok(row)
}

/// Tensors whose true gradient is 0: softmax does not see what is added to all its inputs. The optimiser moves them by
/// rounding noise, in any implementation.
pub(super) fn moves_by_rounding(name: &str) -> bool {
    name.ends_with("attention.self.key.bias")
        || name == "classifier.out_proj.bias"
        || name == "classifier.bias"
}

fn copies(model: &Trainee) -> Result<Vec<Tensor>, TrainError> {
    let copy = |tensor: Tensor| -> Result<Tensor, TrainError> {
        let mut copy = tensor.f_detach()?.f_empty_like()?;
        copy.f_copy_(&tensor.f_detach()?)?;
        Ok(copy)
    };
    model.parameters().iter().map(|parameter| copy(parameter.tensor())).collect()
}

/// A replay under way.
struct Run<'a> {
    replay: &'a Replay,
    objective: Objective,
    model: &'a Trainee,
    optimizer: Optimizer,
    /// Where there are several ranks, what each has accumulated: sums round by their order.
    ranks: Vec<Accumulated>,
}

/// One rank's gradients since the last step, in the optimiser's order.
#[derive(Default)]
struct Accumulated(Vec<Tensor>);

impl Accumulated {
    /// Moves the parameters' gradients here.
    fn take(&mut self, optimizer: &Optimizer) -> Result<(), TrainError> {
        let _guard = tch::no_grad_guard();
        for (place, (_, mut gradient)) in optimizer.gradients()?.into_iter().enumerate() {
            if let Some(sum) = self.0.get_mut(place) {
                let _ = sum.f_add_(&gradient)?;
            } else {
                self.0.push(gradient.f_mul_scalar(1.0)?);
            }
            let _ = gradient.f_zero_()?;
        }
        Ok(())
    }

    /// Adds a share of what is here to the parameters' gradients.
    fn give(&mut self, optimizer: &Optimizer, share: f64) -> Result<(), TrainError> {
        for ((_, mut gradient), sum) in optimizer.gradients()?.into_iter().zip(self.0.drain(..)) {
            let _ = gradient.f_add_(&sum.f_mul_scalar(share)?)?;
        }
        Ok(())
    }
}

impl Run<'_> {
    fn steps(&mut self, notes: &mut Vec<String>) -> Result<Vec<Row>, TrainError> {
        let (mut first, mut losses) =
            (Row::new("loss of step 0", Some(FIRST_LOSS)), Row::new("losses", Some(LOSS)));
        let (mut norms, mut rates) =
            (Row::new("gradient norms", Some(NORM)), Row::new("learning rates", Some(RATE)));
        let mut grads = Row::new("gradients, to the largest", None);
        let recorded = &self.replay.losses;
        let total =
            recorded[0].iter().filter_map(|step| step.optimizer_step).max().map_or(0, |last| last + 1);
        let schedule = self.replay.settings.schedule(total);
        if schedule.is_none() {
            let name = &self.replay.settings.training.lr_scheduler_type;
            notes.push(format!("lr_scheduler_type {name}: rates are taken from the record and not compared"));
        }
        for (micro, step) in recorded[0].iter().enumerate() {
            let found = self.micro_step(micro)?;
            for (rank, found) in found.into_iter().enumerate() {
                let expected = recorded[rank][micro].loss;
                let difference = (found - expected).abs() / expected.abs().max(1.0);
                let row = if micro == 0 { &mut first } else { &mut losses };
                row.take(difference, || format!("micro step {micro}, rank {rank}: {found} for {expected}"));
            }
            let MicroStep { optimizer_step: Some(step), grad_norm, lr, .. } = *step else { continue };
            let scheduled = schedule.map(|schedule| schedule.rate(step));
            if let (Some(scheduled), Some(rate)) = (scheduled, lr) {
                rates.take((scheduled - rate).abs(), || format!("step {step}"));
            }
            let Some(rate) = lr.or(scheduled) else {
                let what = format!("step {step} has no lr, and its lr_scheduler_type is not known");
                return Err(TrainError::Unsupported(what));
            };
            self.reduce()?;
            gradients::compare(&self.replay.dir, step, &self.optimizer.gradients()?, &mut grads)?;
            let found = self.optimizer.step(rate)?;
            if let Some(expected) = grad_norm {
                let difference = (found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE);
                norms.take(difference, || format!("step {step}: {found} for {expected}"));
            }
        }
        Ok(vec![first, losses, grads, norms, rates])
    }

    /// Each rank's loss; its gradient, over the size of the accumulated group, is added to the rank's.
    fn micro_step(&mut self, micro: usize) -> Result<Vec<f64>, TrainError> {
        let batches: Vec<&Recorded> = self.replay.batches.iter().map(|rank| &rank[micro]).collect();
        let losses = self.losses(&batches, micro)?;
        #[allow(clippy::cast_precision_loss)] // Few.
        let accumulated = self.accumulated(micro) as f64;
        for (rank, loss) in losses.iter().enumerate() {
            // Each rank by itself, in which one term is like another; what is missing is the mean over ranks.
            loss.objective(1, GradientScale::FlagEmbedding)?.f_div_scalar(accumulated)?.f_backward()?;
            if losses.len() > 1 {
                self.ranks[rank].take(&self.optimizer)?;
            }
        }
        Ok(losses.iter().map(Loss::value).collect::<Result<_, _>>()?)
    }

    /// Gives the parameters the mean of the ranks' gradients.
    fn reduce(&mut self) -> Result<(), TrainError> {
        let _guard = tch::no_grad_guard();
        #[allow(clippy::cast_precision_loss)] // Few.
        let share = 1.0 / self.replay.settings.world_size as f64;
        for rank in &mut self.ranks {
            rank.give(&self.optimizer, share)?;
        }
        Ok(())
    }

    /// Micro steps of the optimiser step that `micro` belongs to: the last group of an epoch may be short.
    fn accumulated(&self, micro: usize) -> usize {
        let ends = |step: &MicroStep| step.optimizer_step.is_some();
        let steps = &self.replay.losses[0];
        let start = steps[..micro].iter().rposition(ends).map_or(0, |end| end + 1);
        let end = steps[micro..].iter().position(ends).map_or(steps.len() - 1, |end| micro + end);
        end + 1 - start
    }

    fn losses(&self, batches: &[&Recorded], micro: usize) -> Result<Vec<Loss>, TrainError> {
        let mut texts = Vec::new();
        let mut losses = Vec::new();
        for batch in batches {
            match batch {
                Recorded::Texts(batch) => texts.push(batch),
                Recorded::Pairs { pairs, teacher } => losses.push(self.pairs(pairs, teacher.as_deref())?),
            }
        }
        if !losses.is_empty() && !texts.is_empty() {
            return Err(TrainError::Unsupported(
                "a step of texts on one rank and pairs on another".to_owned(),
            ));
        }
        losses.extend(self.texts(&texts, micro)?);
        Ok(losses)
    }

    /// A rank at a time, the others' rows without their graph, as ranks in processes of their own have them.
    fn texts(&self, batches: &[&Texts], micro: usize) -> Result<Vec<Loss>, TrainError> {
        let mut embedded: Vec<[Embedded; 2]> = Vec::new();
        for batch in batches {
            embedded.push([self.embed(&batch.queries)?, self.embed(&batch.passages)?]);
        }
        let teachers = batches.iter().map(|batch| {
            let queries = batch.queries.iter().map(|part| part.sequences.len()).sum();
            batch.teacher.as_deref().map(|scores| teacher(scores, queries)).transpose()
        });
        let teachers: Option<Vec<Tensor>> = teachers.collect::<Result<Option<_>, _>>()?;
        let negatives = self.objective.contrast.negatives;
        (0..batches.len())
            .map(|own| {
                let [queries, passages] = [0, 1].map(|side| detached_but(&embedded, side, own));
                let tokens = |side: usize| embedded[own][side].tokens.as_ref();
                let rows = Rows {
                    own,
                    queries: &queries?,
                    passages: &passages?,
                    tokens: tokens(0).zip(tokens(1)).map(|(q, p): (&Tokens, &Tokens)| [q, p]),
                    teacher: teachers.as_deref(),
                    known: Known::default(),
                    block: None,
                };
                let how = if batches[own].own_group { Negatives::OwnGroup } else { negatives };
                self.objective.loss(&rows, how, self.teaches(micro))
            })
            .collect()
    }

    /// Part by part, as the reference runs sub-batches.
    fn embed(&self, parts: &[Side]) -> Result<Embedded, TrainError> {
        let embed = |side: &Side| self.objective.embed(self.model, side, &Dropout::NONE);
        if let [only] = parts {
            return embed(only);
        }
        let rows = parts.iter().map(|part| Ok(embed(part)?.rows)).collect::<Result<Vec<_>, TrainError>>()?;
        Ok(Embedded { rows: Tensor::f_cat(&rows, 0)?, tokens: None, hidden: None })
    }

    fn teaches(&self, micro: usize) -> bool {
        let m3 = &self.replay.settings.m3;
        m3.use_self_distill && i64::try_from(micro).is_ok_and(|micro| micro > m3.self_distill_start_step)
    }

    fn pairs(&self, pairs: &Side, scores: Option<&[f64]>) -> Result<Loss, TrainError> {
        let sequences: Vec<_> = pairs.sequences.iter().collect();
        let hidden = self.model.hidden(&sequences, pairs.laying(self.objective.custom), &Dropout::NONE)?;
        let logits = self.model.logits(&hidden, &Dropout::NONE)?;
        // As the reference cuts it: into as many groups as a whole batch has, also where the batch is a short one.
        let groups = self.replay.settings.batch_size().max(1);
        let group = i64::try_from(sequences.len() / groups).unwrap_or(i64::MAX);
        let teacher = scores.map(|scores| teacher(scores, groups));
        let teacher = teacher.transpose()?.map(|scores| scores.f_softmax(-1, Kind::Float)).transpose()?;
        Ok(loss::grouped(&logits, group, teacher.as_ref())?)
    }
}

/// All ranks' rows of one side; those of `own` keep their graph.
fn detached_but(embedded: &[[Embedded; 2]], side: usize, own: usize) -> Result<Vec<Tensor>, TrainError> {
    let rows = embedded.iter().enumerate().map(|(rank, sides)| {
        let rows = &sides[side].rows;
        if rank == own { Ok(rows.shallow_clone()) } else { rows.f_detach() }
    });
    Ok(rows.collect::<Result<_, _>>()?)
}
