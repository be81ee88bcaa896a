//! The whole run of one rank: data, steps, checkpoints, the finished model.

mod given;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use model::{Device, Trainee};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::checkpoint::{Best, Checkpoints, Evaluated, State};
use crate::collective::{Collective, Timed};
use crate::data::{Collator, Drawing, Group, Micro, Position, Stream, Wording};
use crate::error::TrainError;
use crate::evaluate::{Directory, Evaluation, InTraining};
use crate::exchange::sum_gradients;
use crate::job::{Job, Kind};
use crate::objective::{Batch, Objective};
use crate::optimizer::Optimizer;
use crate::schedule::Schedule;
use crate::step::{Moment, Pairs, SCORES, Settings, Step};
use crate::trained;

pub use given::{Trial, evaluation};

/// What an optimiser step came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    /// Of how many.
    pub steps: u64,
    /// The mean over ranks and micro steps.
    pub loss: f64,
    /// The step's.
    pub learning_rate: f64,
    /// Of all gradients together, before they were cut down; 0 where some were not finite, and the step was left out.
    pub grad_norm: f64,
    /// Of all ranks, since this rank began.
    pub tokens_per_second: f64,
    /// At the speed so far.
    pub seconds_left: f64,
    /// Of the time since this rank began, what it spent exchanging with others and waiting for them.
    pub exchange_share: f64,
}

/// Something that a run tells of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Told {
    /// A step was taken.
    Step(Progress),
    /// The model was evaluated. After a crash those before it are told again.
    Evaluation(Evaluated),
    /// A checkpoint was written.
    Checkpoint {
        /// After how many optimiser steps.
        step: u64,
    },
    /// The finished model is there.
    Finished {
        /// Its directory.
        model: PathBuf,
        /// After how many optimiser steps it was like this.
        step: u64,
    },
}

/// Trains on `device` to the end, from the newest checkpoint where there is one, and writes the model to `model` below the
/// job's output directory. Every rank calls `report` for all that is to be told.
///
/// # Errors
/// [`TrainError`]; what was checkpointed stays.
pub fn run(
    job: &Job,
    world: &impl Collective,
    device: Device,
    report: impl FnMut(&Told),
) -> Result<(), TrainError> {
    let run = || train(&*given::completed(job, world)?, world, device, report);
    run().map_err(|error| error.named(&job.fetched))
}

fn train(
    job: &Job,
    world: &impl Collective,
    device: Device,
    mut report: impl FnMut(&Told),
) -> Result<(), TrainError> {
    let checkpoints = Checkpoints::below(&job.output_dir.join("checkpoints"), job.save_total_limit);
    let from = agree(world, checkpoints.newest()?)?;
    let world = &Timed::new(world);
    let mut run = Run::start(job, (world, device), &checkpoints, from)?;
    match from {
        Some(_) => run.state.evaluations.iter().cloned().for_each(|known| report(&Told::Evaluation(known))),
        None => {
            run.evaluate(&mut report)?;
        }
    }
    while run.state.step < run.schedule.steps {
        report(&Told::Step(run.step()?));
        let (step, is_last) = (run.state.step, run.state.step == run.schedule.steps);
        let is_evaluated = is_last || job.eval_steps.is_some_and(|every| step.is_multiple_of(every));
        // The best model is one that can be had again.
        let is_best = is_evaluated && run.evaluate(&mut report)? && job.load_best_model_at_end;
        if (step.is_multiple_of(job.save_steps) && !is_last) || is_best {
            run.checkpoint(&checkpoints)?;
            report(&Told::Checkpoint { step });
        }
    }
    let step = run.finished_at();
    if step != run.state.step {
        // That of step 0 is the initial model, of which there is no checkpoint.
        let from = Some((&checkpoints, step)).filter(|_| step > 0);
        run.model = given::load(job, device, from)?;
    }
    let model = job.output_dir.join("model");
    if world.place().rank == 0 {
        trained::write(job, &run.model, &model)?;
    }
    // Nobody is done before the model is there.
    together(world)?;
    report(&Told::Finished { model, step });
    Ok(())
}

/// The step that all ranks go on from: rank 0's, since it alone writes checkpoints.
fn agree(world: &impl Collective, newest: Option<u64>) -> Result<Option<u64>, TrainError> {
    let own = newest.and_then(|step| i64::try_from(step).ok()).unwrap_or(-1);
    let all = world.gather(&Tensor::f_from_slice(&[own])?)?;
    let first = all.first().map_or(Ok(own), |step| step.f_int64_value(&[0]))?;
    Ok(u64::try_from(first).ok())
}

fn together(world: &impl Collective) -> Result<(), TrainError> {
    world.sum(&Tensor::f_from_slice(&[0.0_f32])?)?;
    Ok(())
}

struct Run<'a, C> {
    job: &'a Job,
    world: &'a Timed<'a, C>,
    model: Trainee,
    optimizer: Optimizer,
    objective: Objective,
    guide: Option<Directory>,
    collator: Collator,
    stream: Stream,
    schedule: Schedule,
    evaluation: Option<Evaluation>,
    wordings: [Wording; 2],
    state: State,
    /// Since when, what was exchanged before, and tokens and steps since then.
    began: Instant,
    exchanged: Duration,
    tokens: f64,
    steps: u64,
}

impl<'a, C: Collective> Run<'a, C> {
    fn start(
        job: &'a Job,
        (world, device): (&'a Timed<'a, C>, Device),
        checkpoints: &Checkpoints,
        from: Option<u64>,
    ) -> Result<Self, TrainError> {
        let collator = given::collator(job)?;
        let objective = given::objective(job, &collator)?;
        let model = given::load(job, device, from.map(|step| (checkpoints, step)))?;
        let guide = given::guide(job, device)?;
        let mut optimizer = Optimizer::new(model.parameters(), job.optimizer())?;
        let (mut stream, held) = given::stream(job, world.place())?;
        let evaluation = job.evaluation.as_ref().map(|data| Evaluation::read(data, &held, job.kind));
        let Drawing { query, passage, .. } = given::drawing(job);
        let schedule = given::schedule(job, stream.left());
        let mut state = match from {
            Some(step) => checkpoints.read(step, &mut optimizer)?,
            None => State::default(),
        };
        state.scaler = job.fp16.then(|| state.scaler.unwrap_or_default());
        if let Some(&position) = state.positions.get(world.place().rank) {
            stream.seek(position)?;
        }
        let began = Instant::now();
        Ok(Self {
            job,
            world,
            model,
            optimizer,
            objective,
            guide,
            collator,
            stream,
            schedule,
            evaluation: evaluation.transpose()?,
            wordings: [query, passage],
            state,
            began,
            exchanged: world.exchanging(),
            tokens: 0.0,
            steps: 0,
        })
    }

    /// One optimiser step: micro steps up to the end of the group or of the epoch, their gradients summed over ranks.
    fn step(&mut self) -> Result<Progress, TrainError> {
        let left = if self.stream.left() == 0 { usize::MAX } else { self.stream.left() };
        let group = self.job.gradient_accumulation_steps.min(left);
        let mut sums = [0.0, 0.0];
        for _ in 0..group {
            let micro = self.stream.read()?;
            let (loss, tokens) = self.micro_step(&micro, group)?;
            sums[0] += loss;
            sums[1] += tokens;
            self.state.micro_step += 1;
        }
        sum_gradients(self.world, &self.optimizer.gradients()?)?;
        let [loss, tokens] = self.over_ranks(sums)?;
        let rate = self.schedule.rate(self.state.step);
        self.check_finite("the loss", loss)?;
        let grad_norm = self.move_by(rate)?;
        self.state.step += 1;
        self.steps += 1;
        self.tokens += tokens;
        #[allow(clippy::cast_precision_loss)] // Few.
        let (taken, left) = (self.steps as f64, (self.schedule.steps - self.state.step) as f64);
        let seconds = self.began.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // Few.
        let losses = (group * self.world.place().ranks) as f64;
        Ok(Progress {
            step: self.state.step,
            steps: self.schedule.steps,
            loss: loss / losses,
            learning_rate: rate,
            grad_norm,
            tokens_per_second: self.tokens / seconds,
            seconds_left: seconds / taken * left,
            exchange_share: self.world.exchanging().saturating_sub(self.exchanged).as_secs_f64() / seconds,
        })
    }

    /// Moves the parameters by their gradients, unless some are not finite. Returns the gradients' norm, 0 for such.
    fn move_by(&mut self, rate: f64) -> Result<f64, TrainError> {
        if let Some(scaler) = &mut self.state.scaler {
            let finite = self.optimizer.unscale(scaler.factor())?;
            scaler.note(finite);
            let is_hopeless = scaler.is_exhausted();
            if !finite {
                self.optimizer.clear()?;
                // With the smallest factor they would be if anything helped.
                return if is_hopeless { Err(self.diverged("the gradient")) } else { Ok(0.0) };
            }
        }
        let norm = self.optimizer.step(rate)?;
        self.check_finite("the gradient", norm)?;
        Ok(norm)
    }

    /// Ends a run whose weights are lost, before a checkpoint is made of them.
    fn check_finite(&self, what: &'static str, number: f64) -> Result<(), TrainError> {
        if number.is_finite() { Ok(()) } else { Err(self.diverged(what)) }
    }

    fn diverged(&self, what: &'static str) -> TrainError {
        let advice = if self.job.fp16 {
            "take bf16, whose numbers have a wider range, or a lower learning_rate"
        } else {
            "take a lower learning_rate, a longer warm-up or a higher temperature"
        };
        TrainError::Diverged { step: self.state.step + 1, what, advice }
    }

    /// This rank's loss, and tokens read.
    fn micro_step(&self, micro: &Micro, accumulated: usize) -> Result<(f64, f64), TrainError> {
        let settings = Settings {
            chunk: self.job.gradient_cache_chunk,
            scale: self.job.gradient_scale,
            dropout: self.model.dropout(),
            seed: self.job.seed,
            factor: self.state.scaler.map_or(1.0, |scaler| scaler.factor()),
            scores: SCORES,
        };
        let step = Step { model: &self.model, world: self.world, objective: &self.objective, settings };
        let start = self.job.self_distill_start_step;
        let moment = Moment {
            micro_step: self.state.micro_step,
            accumulated,
            teach: self.job.use_self_distill
                && i64::try_from(self.state.micro_step).is_ok_and(|now| now > start),
        };
        let teacher = self.teacher(micro)?;
        if self.job.kind == Kind::Reranker {
            let mut pairs = Vec::new();
            for group in &micro.groups {
                pairs.extend(self.collator.pairs(&group.query, &group.passages)?);
            }
            let group = micro.groups.first().map_or(1, |group| group.passages.len());
            let pairs = Pairs { pairs: self.collator.side(pairs), group, teacher };
            let tokens = pairs.pairs.tokens();
            return Ok((step.pairs(&pairs, &moment)?, tokens));
        }
        let queries: Vec<String> = micro.groups.iter().map(|group| group.query.clone()).collect();
        let passages: Vec<String> = micro.groups.iter().flat_map(|group| group.passages.clone()).collect();
        let guide = |guide: &Directory| Ok::<_, TrainError>([guide.rows(&queries)?, guide.rows(&passages)?]);
        let batch = Batch {
            queries: self.collator.queries(&queries)?,
            passages: self.collator.passages(&passages)?,
            teacher,
            own_group: micro.own_group,
            distinct: self.job.mask_duplicates,
            guide: self.guide.as_ref().map(guide).transpose()?,
        };
        let tokens = batch.queries.tokens() + batch.passages.tokens();
        Ok((step.texts(&batch, &moment)?, tokens))
    }

    /// The teacher's scores, where all of the batch have some: of batches of one file that of all ranks, which exchange them.
    fn teacher(&self, micro: &Micro) -> Result<Option<Vec<f64>>, TrainError> {
        let own = teacher(&micro.groups);
        if !(self.job.knowledge_distillation && self.job.same_dataset_within_batch) {
            return Ok(own);
        }
        let lacking = Tensor::f_from_slice(&[f32::from(u8::from(own.is_none()))])?;
        self.world.sum(&lacking)?;
        let all_have = lacking.f_double_value(&[0])? < 0.5;
        Ok(own.filter(|_| all_have))
    }

    /// Says how good the model is, and whether it is better than it ever was; nothing where there is no data for it.
    fn evaluate(&mut self, report: &mut impl FnMut(&Told)) -> Result<bool, TrainError> {
        let Some(evaluation) = &self.evaluation else { return Ok(false) };
        let (began, step) = (Instant::now(), self.state.step);
        let [query, passage] = &self.wordings;
        let mut model = InTraining {
            model: &self.model,
            objective: &self.objective,
            collator: &self.collator,
            wordings: [query, passage],
            world: self.world,
        };
        let metrics = match self.job.kind {
            Kind::Embedder => evaluation.measure(&mut model)?,
            Kind::Reranker => evaluation.measure_scorer(&mut model)?,
        };
        let metric = metrics.get(&self.job.metric_for_best_model).copied().unwrap_or(f64::NEG_INFINITY);
        let best = self.state.best.is_none_or(|best| metric > best.metric);
        if best {
            self.state.best = Some(Best { step, metric });
        }
        let evaluated = Evaluated { step, metrics, best, seconds: began.elapsed().as_secs_f64() };
        self.state.evaluations.push(evaluated.clone());
        report(&Told::Evaluation(evaluated));
        Ok(best)
    }

    /// After how many steps the finished model is taken.
    fn finished_at(&self) -> u64 {
        let best = self.state.best.filter(|_| self.job.load_best_model_at_end);
        best.map_or(self.state.step, |best| best.step)
    }

    fn over_ranks(&self, numbers: [f64; 2]) -> Result<[f64; 2], TrainError> {
        let sums = Tensor::f_from_slice(&numbers)?;
        self.world.sum(&sums)?;
        Ok([sums.f_double_value(&[0])?, sums.f_double_value(&[1])?])
    }

    fn checkpoint(&mut self, checkpoints: &Checkpoints) -> Result<(), TrainError> {
        let Position { epoch, micro_step, drawn } = self.stream.position();
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let own = [number(epoch), number(micro_step as u64), number(drawn)];
        let mut positions = Vec::new();
        for position in self.world.gather(&Tensor::f_from_slice(&own)?)? {
            let at = |i| position.f_int64_value(&[i]).map(|n| u64::try_from(n).unwrap_or(0));
            let micro_step = usize::try_from(at(1)?).unwrap_or(usize::MAX);
            positions.push(Position { epoch: at(0)?, micro_step, drawn: at(2)? });
        }
        self.state.positions = positions;
        if self.world.place().rank == 0 {
            checkpoints.write(&self.state, &self.model, &self.optimizer)?;
        }
        // Nobody goes on before it is there: else a rank could be a checkpoint ahead of what all can go back to.
        together(self.world)
    }
}

/// The scores of a batch's groups, where all have some.
fn teacher(groups: &[Group]) -> Option<Vec<f64>> {
    let scores: Option<Vec<&Vec<f64>>> = groups.iter().map(|group| group.teacher.as_ref()).collect();
    scores.map(|scores| scores.into_iter().flatten().copied().collect())
}
