//! A micro step's gradient does not depend on how it is made: in chunks or at once, on one rank or on several.

#![allow(clippy::unwrap_used, reason = "a test")]

mod exchange;
mod threads;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use model::{Device, Dropout, Manner, Pooling, Sequence, Task, Trainee};
use tch::{Kind, Tensor};
use trainer::collective::{Alone, Collective};
use trainer::data::Custom;
use trainer::exchange::sum_gradients;
use trainer::loss::{Contrast, Distillation, GradientScale, Negatives, Sifting, Vocabulary};
use trainer::objective::{Batch, Objective, Side};
use trainer::step::{Moment, Pairs, SCORES, Settings, Step};

use threads::on_ranks;

const MOMENT: Moment = Moment { micro_step: 3, accumulated: 2, teach: true };

/// One test at a time: dropout is drawn from the process's generator, which every step seeds.
static GENERATOR: Mutex<()> = Mutex::new(());

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn model(unified: bool, manner: &Manner, device: Device) -> Trainee {
    let dir = golden(if unified { "traces/models/xlmr-m3" } else { "checkpoints/xlmr-cls" });
    let task = if unified { Task::Unified } else { Task::Dense };
    Trainee::load_for(&dir.join("config.json"), &dir, (task, manner), device).unwrap()
}

/// Whole graphs, and layers that are run again.
fn manners() -> [Manner; 2] {
    [false, true].map(|recompute| Manner { recompute, ..Manner::default() })
}

fn objective(unified: bool, negatives: Negatives) -> Objective {
    let distillation = Distillation::Group;
    Objective {
        contrast: Contrast { temperature: 0.1, negatives, distillation, sifting: Sifting::default() },
        pooling: Pooling::Mean,
        normalize: true,
        dimensions: Vec::new(),
        custom: Custom::Ours,
        unified: unified.then(|| Vocabulary { markers: vec![0, 1, 2, 3], size: None }),
    }
}

const PLAIN: Settings = Settings {
    chunk: None,
    scale: GradientScale::Exact,
    dropout: Dropout::NONE,
    seed: 42,
    factor: 1.0,
    scores: SCORES,
};

/// Texts `from..` of a fixed row of them, of many lengths.
fn side(kind: u32, range: std::ops::Range<u32>) -> Side {
    let text = |n: u32| {
        let words = (0..2 + (n * 5 + kind * 3) % 9).map(|word| 4 + (n * 31 + word * 17 + kind * 101) % 800);
        Sequence::single(std::iter::once(0).chain(words).chain([2]).collect())
    };
    Side::new(range.map(text).collect())
}

/// Queries `range` of the batch with groups of two, and a teacher's scores.
fn batch(range: std::ops::Range<u32>) -> Batch {
    let teacher = (range.start * 2..range.end * 2).map(|n| f64::from(n % 5)).collect();
    Batch {
        queries: side(1, range.clone()),
        passages: side(2, range.start * 2..range.end * 2),
        teacher: Some(teacher),
        ..Batch::default()
    }
}

fn gradients(model: &Trainee) -> Vec<(String, Tensor)> {
    let gradients = model.parameters().iter().map(|p| (p.name().to_owned(), p.tensor().grad()));
    gradients.filter(|(_, gradient)| gradient.defined()).collect()
}

/// Loss and gradients of one rank on `batch`.
fn run(
    world: &impl Collective,
    objective: &Objective,
    settings: Settings,
    batch: &Batch,
) -> (f64, Vec<(String, Tensor)>) {
    run_in(&Manner::default(), world, objective, settings, batch)
}

fn run_in(
    manner: &Manner,
    world: &impl Collective,
    objective: &Objective,
    settings: Settings,
    batch: &Batch,
) -> (f64, Vec<(String, Tensor)>) {
    model::set_threads(1);
    let model = model(objective.unified.is_some(), manner, Device::Cpu);
    let loss = Step { model: &model, world, objective, settings }.texts(batch, &MOMENT).unwrap();
    let found = gradients(&model);
    let named: Vec<(&str, Tensor)> =
        found.iter().map(|(name, g)| (name.as_str(), g.shallow_clone())).collect();
    sum_gradients(world, &named).unwrap();
    (loss, found)
}

#[track_caller]
fn check_same(found: &[(String, Tensor)], expected: &[(String, Tensor)]) {
    assert_eq!(found.len(), expected.len());
    let norm = |tensor: &Tensor| tensor.norm().double_value(&[]);
    let largest = expected.iter().map(|(_, tensor)| norm(tensor)).fold(0.0, f64::max);
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let difference = norm(&(found - expected));
        assert!(difference < 1e-5 * largest, "{name}: {difference} of {largest}");
    }
}

#[test]
fn a_cached_gradient_is_the_gradient() {
    let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for unified in [false, true] {
        let objective = objective(unified, Negatives::InBatch);
        let (loss, expected) = run(&Alone, &objective, PLAIN, &batch(0..5));
        for (chunk, manner) in
            [Some(1), Some(3), Some(4), None].into_iter().flat_map(|chunk| manners().map(|m| (chunk, m)))
        {
            let settings = Settings { chunk, ..PLAIN };
            let (cached_loss, cached) = run_in(&manner, &Alone, &objective, settings, &batch(0..5));
            assert!((cached_loss - loss).abs() < 1e-5, "{cached_loss} {loss}");
            check_same(&cached, &expected);
        }
    }
}

#[test]
fn a_matrix_of_scores_in_parts_makes_the_same_gradient() {
    let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let ways = [Distillation::Group, Distillation::Weighted]
        .into_iter()
        .flat_map(|way| [Negatives::InBatch, Negatives::OwnGroup].map(|negatives| (way, negatives)))
        .flat_map(|(way, negatives)| [(way, negatives, vec![]), (way, negatives, vec![4, 32])]);
    for (distillation, negatives, dimensions) in ways {
        for taught in [true, false] {
            let mut objective = objective(false, negatives);
            objective.contrast.distillation = distillation;
            objective.dimensions.clone_from(&dimensions);
            let batch = || Batch { teacher: batch(0..5).teacher.filter(|_| taught), ..batch(0..5) };
            let (loss, expected) = run(&Alone, &objective, PLAIN, &batch());
            // Of 5 rows with 10 scores each two at a time, and one.
            for scores in [29, 1] {
                let parts = Settings { chunk: Some(3), scores, ..PLAIN };
                let (found_loss, found) = run(&Alone, &objective, parts, &batch());
                assert!((found_loss - loss).abs() < 1e-5, "{found_loss} {loss}");
                check_same(&found, &expected);
            }
        }
    }
}

#[test]
fn gradients_are_multiplied_and_the_loss_told_is_not() {
    let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let objective = objective(false, Negatives::InBatch);
    for chunk in [None, Some(2)] {
        let plain = Settings { chunk, ..PLAIN };
        let (loss, expected) = run(&Alone, &objective, plain, &batch(0..4));
        let (same, found) = run(&Alone, &objective, Settings { factor: 1024.0, ..plain }, &batch(0..4));
        assert_eq!(same.to_bits(), loss.to_bits());
        let found: Vec<_> = found.into_iter().map(|(name, gradient)| (name, gradient / 1024.0)).collect();
        check_same(&found, &expected);
    }
}

#[test]
fn dropout_is_the_same_when_a_chunk_is_run_again() {
    let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for manner in manners() {
        check_dropout(&manner, Some(4));
    }
    check_dropout(&manners()[1], None);
}

#[track_caller]
fn check_dropout(manner: &Manner, chunk: Option<usize>) {
    let dropout = Dropout { hidden: 0.2, attention: 0.2, classifier: 0.0, adapters: 0.0 };
    let objective = objective(false, Negatives::InBatch);
    let whole = batch(0..4);
    let cached =
        |seed| run_in(manner, &Alone, &objective, Settings { dropout, seed, chunk, ..PLAIN }, &whole);
    let (first, second, other) = (cached(42), cached(42), cached(43));
    assert!(first.0.to_bits() == second.0.to_bits() && first.0.to_bits() != other.0.to_bits());
    for ((name, a), (_, b)) in first.1.iter().zip(&second.1) {
        assert_eq!(a, b, "{name}");
    }
    // Along the gradient the loss rises as it says, with the same numbers dropped: a chunk run again with others would
    // tell of another loss.
    let rise = |scale: f64| {
        let model = model(false, manner, Device::Cpu);
        for (parameter, (_, gradient)) in model.parameters().iter().zip(&first.1) {
            let moved = gradient * scale;
            let _ = tch::no_grad(|| parameter.tensor().f_add_(&moved).unwrap());
        }
        let settings = Settings { dropout, chunk, ..PLAIN };
        Step { model: &model, world: &Alone, objective: &objective, settings }.texts(&whole, &MOMENT).unwrap()
    };
    let squares: f64 = first.1.iter().map(|(_, gradient)| gradient.norm().double_value(&[]).powi(2)).sum();
    let step = 1e-2 / squares.sqrt();
    // Half of the loss's gradient: two micro steps are added up.
    let slope = (rise(step) - rise(-step)) / (2.0 * step) / 2.0;
    assert!((slope / squares - 1.0).abs() < 0.02, "{slope} {squares}");
}

/// Gradients of three ranks, each on its own batch.
fn on_three_ranks(
    objective: impl Fn() -> Objective + Copy + Send + 'static,
    settings: Settings,
    batch: impl Fn(u32) -> Batch + Copy + Send + 'static,
) -> Vec<Vec<(String, Tensor)>> {
    on_ranks(move |rank, world| run(world, &objective(), settings, &batch(rank)).1)
}

#[test]
fn ranks_together_have_the_gradient_of_their_batches_together() {
    let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let few = 40; // Of 6 rows with 12 scores each 3 at a time; a rank has 2.
    for (unified, chunk, scores) in
        [(false, None, SCORES), (false, Some(2), SCORES), (false, Some(2), few), (true, Some(3), few)]
    {
        let negatives = if unified { Negatives::OwnGroup } else { Negatives::AllRanks };
        let mut whole = batch(0..6);
        whole.own_group = unified;
        let alone = if unified { negatives } else { Negatives::InBatch };
        let (_, expected) = run(&Alone, &objective(unified, alone), PLAIN, &whole);

        let objective = move || objective(unified, negatives);
        let own = move |rank: u32| {
            let mut own = batch(rank * 2..rank * 2 + 2);
            own.own_group = unified;
            own
        };
        let found = on_three_ranks(objective, Settings { chunk, scores, ..PLAIN }, own);
        for gradients in &found {
            check_same(gradients, &expected);
        }
        for (a, b) in found[0].iter().zip(&found[1]) {
            assert_eq!(a.1, b.1, "{}", a.0);
        }
    }
}

/// Queries `range` with groups of two, some of whose texts are the same, and a guide that thinks its own.
fn doubtful(range: std::ops::Range<u32>) -> Batch {
    let passages = range.start * 2..range.end * 2;
    let mut batch = Batch { distinct: true, ..batch(range.clone()) };
    for (n, sequence) in passages.clone().zip(&mut batch.passages.sequences) {
        sequence.ids[1..3].copy_from_slice(&[10 + n % 7, 20]);
        sequence.ids.drain(3..);
    }
    batch.passages = Side::new(batch.passages.sequences);
    let rows = |range: std::ops::Range<u32>| {
        let numbers: Vec<f64> = range.flat_map(|n| [f64::from(n * n % 11), 2.0]).collect();
        Tensor::from_slice(&numbers).to_kind(Kind::Float).view([-1, 2])
    };
    batch.guide = Some([rows(range), rows(passages)]);
    batch
}

/// Each way of choosing negatives, and all together.
fn choices() -> [(Sifting, [bool; 2]); 5] {
    let none = Sifting::default();
    let all = Sifting { false_negative_margin: Some(0.01), guide_margin: 0.02, hardness_weight: 3.0 };
    [
        (Sifting { false_negative_margin: Some(0.01), ..none }, [false, false]),
        (none, [true, false]),
        (Sifting { guide_margin: 0.02, ..none }, [false, true]),
        (Sifting { hardness_weight: 3.0, ..none }, [false, false]),
        (all, [true, true]),
    ]
}

#[test]
fn chosen_negatives_are_the_same_in_chunks_and_on_several_ranks() {
    let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let (plain_loss, _) = run(&Alone, &objective(false, Negatives::InBatch), PLAIN, &{
        Batch { distinct: false, guide: None, ..doubtful(0..6) }
    });
    for (sifting, [distinct, guided]) in choices() {
        let objective = move |negatives| {
            let mut objective = objective(false, negatives);
            objective.contrast.sifting = sifting;
            objective
        };
        let batch = move |range| {
            let batch = doubtful(range);
            Batch { distinct, guide: batch.guide.filter(|_| guided), ..batch }
        };
        let (loss, expected) = run(&Alone, &objective(Negatives::InBatch), PLAIN, &batch(0..6));
        assert!((loss - plain_loss).abs() > 1e-3, "{sifting:?} changes nothing: {loss}");
        let chunked = Settings { chunk: Some(4), scores: 29, ..PLAIN };
        check_same(&run(&Alone, &objective(Negatives::InBatch), chunked, &batch(0..6)).1, &expected);
        let own = move |rank: u32| batch(rank * 2..rank * 2 + 2);
        let chunked = Settings { chunk: Some(2), scores: 29, ..PLAIN };
        for found in on_three_ranks(move || objective(Negatives::AllRanks), chunked, own) {
            check_same(&found, &expected);
        }
    }
}

#[test]
fn groups_of_pairs_in_chunks_are_the_whole() {
    let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = golden("checkpoints/xlmr-cross");
    let pairs =
        Pairs { pairs: side(3, 0..12), group: 3, teacher: Some((0..12).map(|n| f64::from(n % 4)).collect()) };
    let run = |chunk: Option<usize>, manner: &Manner| {
        let config = dir.join("config.json");
        let model = Trainee::load_for(&config, &dir, (Task::Score, manner), Device::Cpu).unwrap();
        let objective = objective(false, Negatives::InBatch);
        let settings = Settings { chunk, ..PLAIN };
        let step = Step { model: &model, world: &Alone, objective: &objective, settings };
        (step.pairs(&pairs, &MOMENT).unwrap(), gradients(&model))
    };
    let (loss, expected) = run(None, &Manner::default());
    assert!(loss.is_finite() && expected.iter().any(|(_, g)| g.norm().double_value(&[]) > 1e-3));
    for (chunk, manner) in [1, 3, 7].into_iter().flat_map(|chunk| manners().map(|manner| (chunk, manner))) {
        let (chunked, found) = run(Some(chunk), &manner);
        assert!((chunked - loss).abs() < 1e-5, "{chunked} {loss}");
        check_same(&found, &expected);
    }
}

#[cfg(feature = "cuda-tests")]
mod cuda {
    use trainer::optimizer::{Optimizer, Settings as Rules};

    use super::*;

    const RATE: f64 = 1e-3;
    const RULES: Rules =
        Rules { betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.01, max_norm: Some(1.0) };

    /// Loss, gradients, and by how much one optimiser step moves each parameter, all on the processor.
    fn moved(
        device: Device,
        unified: bool,
        (chunk, manner): (Option<usize>, &Manner),
    ) -> (f64, [Vec<Tensor>; 2]) {
        model::set_threads(1);
        let (model, objective) = (model(unified, manner, device), objective(unified, Negatives::InBatch));
        let settings = Settings { chunk, ..PLAIN };
        let step = Step { model: &model, world: &Alone, objective: &objective, settings };
        let loss = step.texts(&Batch { distinct: true, ..batch(0..5) }, &MOMENT).unwrap();
        let here = |tensor: Tensor| tensor.detach().to_device(tch::Device::Cpu).copy();
        let values =
            || model.parameters().iter().map(|parameter| here(parameter.tensor())).collect::<Vec<_>>();
        let gradients = gradients(&model).into_iter().map(|(_, gradient)| here(gradient)).collect();
        let before = values();
        Optimizer::new(model.parameters(), RULES).unwrap().step(RATE).unwrap();
        let moves = values().iter().zip(&before).map(|(after, before)| after - before).collect();
        (loss, [gradients, moves])
    }

    fn norm(tensors: &[Tensor]) -> f64 {
        tensors.iter().map(|tensor| tensor.norm().double_value(&[]).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn a_step_on_cuda_is_that_on_the_processor() {
        let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        model::reach(Device::Cuda(0)).unwrap();
        for unified in [false, true] {
            let (loss, expected) = moved(Device::Cpu, unified, (None, &Manner::default()));
            for (chunk, manner) in [None, Some(2)].into_iter().flat_map(|chunk| manners().map(|m| (chunk, m)))
            {
                let (found_loss, found) = moved(Device::Cuda(0), unified, (chunk, &manner));
                assert!((found_loss - loss).abs() < 1e-4, "{found_loss} {loss}");
                // Where a gradient is next to nothing, the first step's direction is that of its rounding.
                for (found, expected, allowed) in
                    [(&found[0], &expected[0], 1e-3), (&found[1], &expected[1], 5e-2)]
                {
                    let apart: Vec<Tensor> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
                    let share = norm(&apart) / norm(expected);
                    assert!(found.len() == expected.len() && share < allowed, "{share}, chunks of {chunk:?}");
                }
            }
        }
    }

    #[test]
    fn dropout_on_cuda_is_the_same_when_a_chunk_is_run_again() {
        let _one = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
        model::reach(Device::Cuda(0)).unwrap();
        let hidden = |seed: i64| {
            let model = model(false, &Manner::default(), Device::Cuda(0));
            let (side, dropout) = (side(1, 0..4), Dropout { hidden: 0.3, attention: 0.3, ..Dropout::NONE });
            model::seed(seed);
            objective(false, Negatives::InBatch).embed(&model, &side, &dropout).unwrap().rows.detach()
        };
        assert_eq!(hidden(3), hidden(3));
        assert!(hidden(3) != hidden(4));
    }
}
