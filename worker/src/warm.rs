//! The first batches of a checkpoint: they find out how fast it is, and pay for what only the first of a kind pays for.

use std::time::Duration;

use model::{Sequence, TokenizeError, Truncation};

use crate::bisect::EncodeError;
use crate::pace::Target;
use crate::schedule;
use crate::tokenise::Tokenise;

/// What warm-up batches are made of; the words do not matter, and every tokenizer has tokens for them.
const WORDS: &str = "the quick brown fox jumps over the lazy dog ";
/// Tokens of a text in a warm-up batch, where the window has so many: a middling text.
const TEXT_TOKENS: usize = 64;
/// Tokens of the text where others wait: a question.
const SHORT_TOKENS: usize = 16;
/// Texts of one batch after the other.
const SIZES: [usize; 7] = [1, 4, 16, 64, 256, 1024, 4096];

/// How much a warm-up may hold up others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as it takes to know how fast the checkpoint is: nobody waits for the device.
    Ample,
    /// A short text: calls on other checkpoints wait for it. Their batches will tell how fast it is.
    Short,
}

/// A text that any checkpoint runs, of a middling length.
///
/// # Errors
/// As the tokenizer's.
pub fn probe(tokenizer: &dyn Tokenise) -> Result<Sequence, TokenizeError> {
    let mut sequence = tokenizer.encode(&WORDS.repeat(TEXT_TOKENS / 8), Truncation::End)?;
    sequence.ids.truncate(TEXT_TOKENS);
    Ok(Sequence::single(sequence.ids))
}

/// Runs batches that nobody asked for: a checkpoint on the device, or a test's idea of one.
pub trait Rehearse: Send {
    /// How long `batch` took.
    ///
    /// # Errors
    /// As running it.
    fn run(&mut self, batch: Vec<Sequence>) -> impl Future<Output = Result<Duration, EncodeError>> + Send;
}

/// Runs the first batches of a checkpoint, made of its `probe`; answers its work per second, in tokens.
///
/// # Errors
/// That of the first run.
pub async fn warm(
    probe: &Sequence,
    (target, patience): (Target, Patience),
    stage: &mut impl Rehearse,
) -> Result<f64, EncodeError> {
    match patience {
        Patience::Ample => measure(probe, target, stage).await,
        Patience::Short => {
            let ids: Vec<u32> = probe.ids.iter().copied().take(SHORT_TOKENS).collect();
            let tokens = ids.len();
            stage.run(vec![Sequence::single(ids)]).await.map(|took| rate(tokens, took))
        }
    }
}

/// Work per second of batches of `probe`: each batch four times the last, until one takes long enough to say something.
/// Where memory runs out, what is known by then has to do.
async fn measure(probe: &Sequence, target: Target, stage: &mut impl Rehearse) -> Result<f64, EncodeError> {
    let mut best = 0.0;
    for texts in SIZES {
        let fast = match twice(&vec![probe.clone(); texts], target.batch, stage).await {
            Ok(fast) => fast,
            Err(EncodeError::OutOfMemory(_)) if best > 0.0 => break,
            Err(error) => return Err(error),
        };
        let work = texts * schedule::work(probe.tokens());
        best = f64::max(best, rate(work, fast));
        if fast >= target.batch / 4 || 4 * work > target.most {
            break;
        }
    }
    Ok(best)
}

#[allow(clippy::cast_precision_loss)] // A batch is small.
fn rate(work: usize, took: Duration) -> f64 {
    work as f64 / took.as_secs_f64().max(1e-9)
}

/// The shorter time of two runs, for the first of its size pays for what the second finds ready; of one where that
/// takes longer than a batch should.
async fn twice(
    batch: &[Sequence],
    limit: Duration,
    stage: &mut impl Rehearse,
) -> Result<Duration, EncodeError> {
    let first = stage.run(batch.to_vec()).await?;
    if first > limit { Ok(first) } else { Ok(first.min(stage.run(batch.to_vec()).await?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { batch: Duration::from_millis(100), least: 1, most: 1_000_000 };

    /// Takes so long per token, has room for so many texts, and notes how many texts of how many tokens it was given.
    struct Slow {
        per_token: Duration,
        room: usize,
        runs: Vec<(usize, usize)>,
    }

    impl Rehearse for Slow {
        async fn run(&mut self, batch: Vec<Sequence>) -> Result<Duration, EncodeError> {
            self.runs.push((batch.len(), batch[0].tokens()));
            if batch.len() > self.room {
                return Err(EncodeError::OutOfMemory("as told".into()));
            }
            let tokens: usize = batch.iter().map(Sequence::tokens).sum();
            Ok(self.per_token * u32::try_from(tokens).unwrap())
        }
    }

    /// The rate with a probe of so many tokens, and the runs.
    async fn go(
        tokens: usize,
        per_token: Duration,
        room: usize,
        how: (Target, Patience),
    ) -> (Result<f64, EncodeError>, Vec<(usize, usize)>) {
        let mut stage = Slow { per_token, room, runs: Vec::new() };
        let rate = warm(&Sequence::single(vec![1; tokens]), how, &mut stage).await;
        (rate, stage.runs)
    }

    fn sizes(runs: &[(usize, usize)]) -> Vec<usize> {
        runs.iter().map(|(texts, _)| *texts).collect()
    }

    #[tokio::test]
    async fn batches_grow_until_one_takes_long_enough() {
        let (rate, runs) = go(10, Duration::from_micros(100), 9999, (TARGET, Patience::Ample)).await;
        assert!((rate.unwrap() / 10_000.0 - 1.0).abs() < 1e-6);
        assert_eq!(sizes(&runs), [1, 1, 4, 4, 16, 16, 64, 64]);
    }

    #[tokio::test]
    async fn batches_grow_no_further_than_memory_and_the_largest_budget() {
        let target = Target { batch: Duration::from_secs(100), least: 1, most: 1_000 };
        let ample = (target, Patience::Ample);
        assert_eq!(sizes(&go(10, Duration::ZERO, 9999, ample).await.1), [1, 1, 4, 4, 16, 16, 64, 64]);
        let (rate, runs) = go(10, Duration::ZERO, 9, ample).await;
        assert!(rate.is_ok());
        assert_eq!(sizes(&runs), [1, 1, 4, 4, 16]);
        assert!(go(10, Duration::ZERO, 0, ample).await.0.is_err());
    }

    #[tokio::test]
    async fn where_others_wait_a_question_has_to_do() {
        let slow = Duration::from_micros(100);
        let (rate, runs) = go(TEXT_TOKENS, slow, 9999, (TARGET, Patience::Short)).await;
        assert_eq!(runs, [(1, SHORT_TOKENS)]);
        assert!((rate.unwrap() / 10_000.0 - 1.0).abs() < 1e-6);
        assert_eq!(go(3, slow, 9999, (TARGET, Patience::Short)).await.1, [(1, 3)]);
    }
}
