//! Runs a batch so that an input the model fails on fails alone.
//!
//! A batch that fails is run again in halves, down to single inputs. Before the first half the encoder must run a
//! probe, an input that is known to work: where that fails too it is the device that is broken, and no input is to
//! blame. A batch too large for memory is halved in the same way, and says so, for the next to be smaller.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use model::{Rows, Sequence};

use crate::call::Failure;

/// A checkpoint that runs batches: a model, or a test's idea of one. One thread at a time uses it.
pub trait Encode: Send + 'static {
    /// One row per sequence of `batch`, in order.
    ///
    /// # Errors
    /// By whether a smaller batch may do; see [`EncodeError`].
    fn encode(&mut self, batch: &[&Sequence]) -> Result<Rows, EncodeError>;
}

/// Why a batch has no rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A smaller batch may do.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// This batch cannot be run.
    #[error("{0}")]
    Failed(String),
}

/// The device does not even run what it ran before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device is broken: {reason}")]
pub struct Broken {
    /// What it says of the probe.
    pub reason: EncodeError,
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// One per sequence, in order.
    pub rows: Vec<Result<Vec<f32>, Failure>>,
    /// Whether memory ran out for sequences together that it sufficed for apart: the batch was too large. Where one
    /// alone is too large, smaller batches would not help it.
    pub out_of_memory: bool,
    /// Runs of the encoder that gave no rows.
    pub failures: u64,
}

/// Runs `batch`; `probe` is an input known to work.
///
/// # Errors
/// [`Broken`] where the probe does not work any more.
pub fn run(encoder: &mut impl Encode, batch: &[&Sequence], probe: &Sequence) -> Result<Outcome, Broken> {
    let mut run = Run { encoder, probe: Some(probe), ran_out: false, outcome: Outcome::default() };
    run.part(batch)?;
    let alone = run.outcome.rows.contains(&Err(Failure::OutOfMemory));
    Ok(Outcome { out_of_memory: run.ran_out && !alone, ..run.outcome })
}

/// Runs the encoder once. A panic is a failure like others: what it left behind is judged by the probe.
///
/// # Errors
/// As [`Encode::encode`]; also where there is not one row per sequence.
pub fn attempt(encoder: &mut impl Encode, batch: &[&Sequence]) -> Result<Rows, EncodeError> {
    let rows = catch_unwind(AssertUnwindSafe(|| encoder.encode(batch)))
        .unwrap_or_else(|panic| Err(EncodeError::Failed(format!("panicked: {}", message(&*panic)))))?;
    if rows.iter().len() == batch.len() {
        Ok(rows)
    } else {
        Err(EncodeError::Failed(format!("{} rows for {} inputs", rows.iter().len(), batch.len())))
    }
}

struct Run<'a, E> {
    encoder: &'a mut E,
    /// Taken when it has been run: once is enough in a batch.
    probe: Option<&'a Sequence>,
    /// Whether memory ran out for more than one sequence.
    ran_out: bool,
    outcome: Outcome,
}

impl<E: Encode> Run<'_, E> {
    /// Appends the outcome of each sequence of `batch`.
    fn part(&mut self, batch: &[&Sequence]) -> Result<(), Broken> {
        if batch.is_empty() {
            return Ok(());
        }
        let failure = match attempt(self.encoder, batch) {
            Ok(rows) => {
                self.outcome.rows.extend(rows.iter().map(finite));
                return Ok(());
            }
            Err(EncodeError::OutOfMemory(_)) => {
                self.ran_out |= batch.len() > 1;
                Failure::OutOfMemory
            }
            Err(EncodeError::Failed(reason)) => {
                self.prove()?;
                Failure::Poisonous(reason)
            }
        };
        self.outcome.failures += 1;
        if batch.len() == 1 {
            self.outcome.rows.push(Err(failure));
            return Ok(());
        }
        let (first, second) = batch.split_at(batch.len() / 2);
        self.part(first)?;
        self.part(second)
    }

    fn prove(&mut self) -> Result<(), Broken> {
        let Some(probe) = self.probe.take() else { return Ok(()) };
        match attempt(self.encoder, &[probe]) {
            // No memory is no proof against the device: others may hold it for now.
            Ok(_) | Err(EncodeError::OutOfMemory(_)) => Ok(()),
            Err(reason) => Err(Broken { reason }),
        }
    }
}

/// A row with a number that is none is its own input's fault: rows do not depend on their neighbours.
fn finite(row: &[f32]) -> Result<Vec<f32>, Failure> {
    if row.iter().all(|x| x.is_finite()) {
        Ok(row.to_vec())
    } else {
        Err(Failure::Poisonous("its row is not finite".to_owned()))
    }
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("for no stated reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    const POISON: u32 = 666;
    const PANIC: u32 = 667;
    const NAN: u32 = 668;

    /// Gives back first ids; fails on some, and on more than `room` sequences.
    struct Ids {
        room: usize,
        runs: Vec<usize>,
    }

    impl Encode for Ids {
        fn encode(&mut self, batch: &[&Sequence]) -> Result<Rows, EncodeError> {
            self.runs.push(batch.len());
            let ids: Vec<u32> = batch.iter().map(|sequence| sequence.ids[0]).collect();
            assert!(!ids.contains(&PANIC), "as told");
            if ids.contains(&POISON) {
                return Err(EncodeError::Failed("as told".into()));
            }
            if ids.len() > self.room {
                return Err(EncodeError::OutOfMemory("as told".into()));
            }
            #[allow(clippy::cast_precision_loss)]
            let rows = ids.iter().map(|&id| if id == NAN { f32::NAN } else { id as f32 });
            Ok(Rows::new(1, rows.collect()))
        }
    }

    fn go(ids: &[u32], probe: u32, room: usize) -> (Result<Outcome, Broken>, Vec<usize>) {
        let sequences: Vec<Sequence> = ids.iter().map(|&id| Sequence::single(vec![id])).collect();
        let mut encoder = Ids { room, runs: Vec::new() };
        let probe = Sequence::single(vec![probe]);
        let outcome = run(&mut encoder, &sequences.iter().collect::<Vec<_>>(), &probe);
        (outcome, encoder.runs)
    }

    /// Rows, with -1 for poisonous inputs and -2 for those without memory; then the sizes of all runs.
    #[track_caller]
    fn check(ids: &[u32], room: usize, rows: &[f32], runs: &[usize]) {
        let (outcome, found) = go(ids, 1, room);
        let number = |row: &Result<Vec<f32>, Failure>| match row {
            Ok(row) => row[0],
            Err(Failure::Poisonous(_)) => -1.0,
            Err(_) => -2.0,
        };
        assert_eq!(outcome.unwrap().rows.iter().map(number).collect::<Vec<_>>(), rows);
        assert_eq!(found, runs);
    }

    #[test]
    fn a_good_batch_is_run_once() {
        check(&[], 9, &[], &[]);
        check(&[5, 6, 7], 9, &[5.0, 6.0, 7.0], &[3]);
    }

    #[test]
    fn a_poisonous_input_fails_alone() {
        check(&[1, 2, 3, POISON], 9, &[1.0, 2.0, 3.0, -1.0], &[4, 1, 2, 2, 1, 1]);
        check(&[PANIC, 2], 9, &[-1.0, 2.0], &[2, 1, 1, 1]);
        check(&[POISON, PANIC], 9, &[-1.0, -1.0], &[2, 1, 1, 1]);
    }

    #[test]
    fn a_row_that_is_not_finite_fails_without_another_run() {
        check(&[1, NAN, 3], 9, &[1.0, -1.0, 3.0], &[3]);
    }

    #[test]
    fn a_batch_too_large_for_memory_is_halved() {
        check(&[1, 2, 3, 4, 5], 2, &[1.0, 2.0, 3.0, 4.0, 5.0], &[5, 2, 3, 1, 2]);
        check(&[1, 2], 0, &[-2.0, -2.0], &[2, 1, 1]);
        assert!(go(&[1, 2], 1, 1).0.unwrap().out_of_memory);
        assert!(!go(&[1, 2], 1, 0).0.unwrap().out_of_memory, "smaller batches would not help");
        assert!(!go(&[1, POISON], 1, 9).0.unwrap().out_of_memory);
    }

    #[test]
    fn where_the_probe_fails_too_no_input_is_to_blame() {
        let (outcome, runs) = go(&[1, 2, POISON, 4], POISON, 9);
        assert_eq!(outcome, Err(Broken { reason: EncodeError::Failed("as told".into()) }));
        assert_eq!(runs, [4, 1]);
    }

    #[test]
    fn a_panic_says_what_it_said() {
        let (outcome, _) = go(&[PANIC], 1, 9);
        let failure = outcome.unwrap().rows.remove(0).unwrap_err();
        assert_eq!(failure, Failure::Poisonous("panicked: as told".into()));
    }
}
