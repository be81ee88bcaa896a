//! Checkpoints opened, loaded onto the device, warmed and measured: what happens before a worker is ready.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cluster::Name;
use model::{
    Checkpoint, Device, LoadError, Model, Precision, Rows, RunError, Sequence, Tokenizer, Truncation,
};

use crate::bisect::{Encode, EncodeError};
use crate::catalogue::Served;
use crate::config::BatchTokens;
use crate::device::Loaded;
use crate::pace::{Budget, Speed, Target};
use crate::schedule;
use crate::spec::ModelSpec;

/// What warm-up batches are made of; the words do not matter, and every tokenizer has tokens for them.
const WORDS: &str = "the quick brown fox jumps over the lazy dog ";
/// Tokens of a text in a warm-up batch, where the window has so many: a middling text.
const TEXT_TOKENS: usize = 64;

/// A checkpoint that has been opened, under a name.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The name it is served under.
    pub name: Name,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
}

/// Opens all checkpoints. Blocks: every byte is read and hashed.
///
/// # Errors
/// [`StartError::Load`] for the first directory that does not hold a checkpoint.
pub fn open(specs: &[ModelSpec]) -> Result<Vec<Opened>, StartError> {
    let open = |spec: &ModelSpec| {
        let name = spec.name.clone();
        match Checkpoint::open(&spec.dir, &spec.overrides) {
            Ok(checkpoint) => Ok(Opened { name, checkpoint }),
            Err(source) => Err(StartError::Load { name, source }),
        }
    };
    specs.iter().map(open).collect()
}

/// Where and how models run.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// The kind of number asked for.
    pub precision: Precision,
    /// Work in a batch.
    pub batch_tokens: BatchTokens,
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Mend the checkpoint's files.
    #[error("model {name}: {source}")]
    Load {
        /// The name it was to be served under.
        name: Name,
        /// What is wrong.
        source: LoadError,
    },
    /// Mend the device, or use another.
    #[error("model {name} does not run: {source}")]
    Run {
        /// Its name.
        name: Name,
        /// What the first batch says.
        source: EncodeError,
    },
    /// The system has no thread to load with.
    #[error("no thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What is known of the models once they have run.
#[derive(Debug)]
pub struct Facts {
    /// One for each name, in the order asked for.
    pub served: Vec<Served>,
    /// How long each took to be ready.
    pub took: Vec<Duration>,
    /// How much one batch of each checkpoint may hold.
    pub budgets: HashMap<Arc<str>, Budget>,
    /// Of the device, over all checkpoints.
    pub speed: Speed,
}

/// The models of a device.
#[derive(Debug, Default)]
pub struct Models(HashMap<Arc<str>, Model>);

impl Encode for Models {
    fn encode(&mut self, digest: &str, batch: &[&Sequence]) -> Result<Rows, EncodeError> {
        let Some(model) = self.0.get(digest) else {
            return Err(EncodeError::Failed(format!("checkpoint {digest} is not on the device")));
        };
        model.run(batch).map_err(|error| match error {
            RunError::OutOfMemory(reason) => EncodeError::OutOfMemory(reason),
            RunError::Failed(reason) => EncodeError::Failed(reason),
        })
    }
}

/// Loads, warms and measures all of `opened`, on the thread that calls it. Tokenizers are read meanwhile by another.
///
/// # Errors
/// That of the first model which cannot be loaded or does not run.
pub fn load(opened: &[Opened], place: Place) -> Result<Loaded<Models, Facts>, StartError> {
    thread::scope(|scope| {
        let tokenizers = thread::Builder::new()
            .name("load-tokenizers".to_owned())
            .spawn_scoped(scope, || opened.iter().map(tokenizer).collect::<Result<Vec<_>, _>>())?;
        let mut loading = Loading::new(place);
        for each in opened {
            loading.load(each)?;
        }
        let tokenizers = tokenizers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        for (each, tokenizer) in opened.iter().zip(tokenizers) {
            loading.warm(each, tokenizer)?;
        }
        let Loading { encoder, probes, facts, .. } = loading;
        Ok(Loaded { encoder, probes, facts })
    })
}

fn tokenizer(opened: &Opened) -> Result<Tokenizer, StartError> {
    let Opened { name, checkpoint } = opened;
    checkpoint.tokenizer().map_err(|source| StartError::Load { name: name.clone(), source })
}

struct Loading {
    place: Place,
    encoder: Models,
    probes: HashMap<Arc<str>, Sequence>,
    facts: Facts,
}

impl Loading {
    fn new(place: Place) -> Self {
        let facts =
            Facts { served: Vec::new(), took: Vec::new(), budgets: HashMap::new(), speed: Speed::default() };
        Self { place, encoder: Models::default(), probes: HashMap::new(), facts }
    }

    /// Loads a checkpoint, once under whichever names.
    fn load(&mut self, opened: &Opened) -> Result<(), StartError> {
        let Opened { name, checkpoint } = opened;
        let start = Instant::now();
        if !self.encoder.0.contains_key(checkpoint.digest()) {
            let model = Model::load(checkpoint, self.place.device, self.place.precision)
                .map_err(|source| StartError::Load { name: name.clone(), source })?;
            self.encoder.0.insert(checkpoint.digest().into(), model);
        }
        self.facts.took.push(start.elapsed());
        Ok(())
    }

    /// Runs a loaded checkpoint for the first time, and notes how fast it is.
    fn warm(&mut self, opened: &Opened, tokenizer: Tokenizer) -> Result<(), StartError> {
        let Opened { name, checkpoint } = opened;
        let (start, digest) = (Instant::now(), Arc::<str>::from(checkpoint.digest()));
        let mut speed = None;
        if !self.probes.contains_key(&digest) {
            let probe = probe(name, &tokenizer)?;
            let target = match self.place.device {
                Device::Cpu => Target::CPU,
                Device::Cuda(_) => Target::CUDA,
            };
            let rate = measure(&mut self.encoder, &digest, &probe, target)
                .map_err(|source| StartError::Run { name: name.clone(), source })?;
            let budget = match self.place.batch_tokens {
                BatchTokens::Auto => Budget::measured(target, checkpoint.card().max_tokens, rate),
                BatchTokens::Fixed(tokens) => Budget::fixed(tokens.get()),
            };
            self.facts.budgets.insert(digest.clone(), budget);
            // The first guess is that of the slowest: too much is promised to nobody.
            if self.facts.speed == Speed::default() || rate < self.facts.speed.tokens_per_second() {
                self.facts.speed = Speed::new(rate);
            }
            self.probes.insert(digest.clone(), probe);
            speed = Some(rate.round());
        }
        let dtype = self.encoder.0.get(&digest).map_or("", Model::dtype);
        let took = self.facts.took[self.facts.served.len()] + start.elapsed();
        self.facts.took[self.facts.served.len()] = took;
        self.tell(opened, dtype, (took, speed));
        self.facts.served.push(Served {
            name: name.as_str().into(),
            digest,
            index_space: checkpoint.index_space().to_owned(),
            card: checkpoint.card().clone(),
            dtype: dtype.to_owned(),
            tokenizer: Arc::new(tokenizer),
        });
        Ok(())
    }

    fn tell(&self, opened: &Opened, dtype: &str, (took, tokens_per_second): (Duration, Option<f64>)) {
        let digest = opened.checkpoint.digest();
        let card = opened.checkpoint.card();
        tracing::info!(
            model = %opened.name,
            digest,
            architecture = card.architecture,
            dimensions = card.dimensions,
            window = card.max_tokens,
            dtype,
            batch_tokens = self.facts.budgets.get(digest).map_or(0, Budget::tokens),
            tokens_per_second,
            ?took,
            "model is warm"
        );
    }
}

fn probe(name: &Name, tokenizer: &Tokenizer) -> Result<Sequence, StartError> {
    let encoded = tokenizer.encode(&WORDS.repeat(TEXT_TOKENS / 8), Truncation::End);
    let mut sequence = encoded.map_err(|error| StartError::Run {
        name: name.clone(),
        source: EncodeError::Failed(error.to_string()),
    })?;
    sequence.ids.truncate(TEXT_TOKENS);
    Ok(Sequence::single(sequence.ids))
}

/// Work per second of batches of `probe`, in tokens: each batch four times the last, until one takes long enough to
/// say something.
fn measure(
    encoder: &mut impl Encode,
    digest: &str,
    probe: &Sequence,
    target: Target,
) -> Result<f64, EncodeError> {
    let mut best = 0.0;
    for texts in [1, 4, 16, 64, 256, 1024, 4096] {
        let work = texts * schedule::work(probe.tokens());
        let fast = match twice(encoder, digest, &vec![probe; texts], target.batch) {
            Ok(fast) => fast,
            // What is measured by then has to do.
            Err(EncodeError::OutOfMemory(_)) if best > 0.0 => break,
            Err(error) => return Err(error),
        };
        #[allow(clippy::cast_precision_loss)] // A batch is small.
        let rate = work as f64 / fast.as_secs_f64().max(1e-9);
        best = f64::max(best, rate);
        if fast >= target.batch / 4 || 4 * work > target.most {
            break;
        }
    }
    Ok(best)
}

/// The shorter time of two runs, for the first of its size pays for what the second finds ready; of one where that
/// takes longer than a batch should.
fn twice(
    encoder: &mut impl Encode,
    digest: &str,
    batch: &[&Sequence],
    patience: Duration,
) -> Result<Duration, EncodeError> {
    let mut run = || {
        let start = Instant::now();
        encoder.encode(digest, batch).map(|_| start.elapsed())
    };
    let first = run()?;
    if first > patience { Ok(first) } else { Ok(first.min(run()?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so long per token, and has room for so many texts.
    struct Slow {
        per_token: Duration,
        room: usize,
        runs: Vec<usize>,
    }

    impl Encode for Slow {
        fn encode(&mut self, _: &str, batch: &[&Sequence]) -> Result<Rows, EncodeError> {
            self.runs.push(batch.len());
            if batch.len() > self.room {
                return Err(EncodeError::OutOfMemory("as told".into()));
            }
            let tokens: usize = batch.iter().map(|sequence| sequence.tokens()).sum();
            thread::sleep(self.per_token * u32::try_from(tokens).unwrap());
            Ok(Rows::new(1, vec![0.0; batch.len()]))
        }
    }

    /// Rates, and the sizes of the batches run.
    fn go(per_token: Duration, room: usize, target: Target) -> (Result<f64, EncodeError>, Vec<usize>) {
        let mut encoder = Slow { per_token, room, runs: Vec::new() };
        let rate = measure(&mut encoder, "m", &Sequence::single(vec![1; 10]), target);
        (rate, encoder.runs)
    }

    #[test]
    fn batches_grow_until_one_takes_long_enough() {
        let target = Target { batch: Duration::from_millis(100), least: 1, most: 1_000_000 };
        let (rate, runs) = go(Duration::from_micros(100), 9999, target);
        let rate = rate.unwrap();
        assert!(rate > 0.0 && rate <= 10_000.0, "{rate}");
        assert!(runs.starts_with(&[1, 1, 4]) && *runs.last().unwrap() <= 64, "{runs:?}");
    }

    #[test]
    fn batches_grow_no_further_than_memory_and_the_largest_budget() {
        let target = Target { batch: Duration::from_secs(100), least: 1, most: 1_000 };
        assert_eq!(go(Duration::ZERO, 9999, target).1, [1, 1, 4, 4, 16, 16, 64, 64]);
        let (rate, runs) = go(Duration::ZERO, 9, target);
        assert!(rate.is_ok());
        assert_eq!(runs, [1, 1, 4, 4, 16]);
        assert!(go(Duration::ZERO, 0, target).0.is_err());
    }
}
