//! What a rank reads, one micro step after the other, and where it stands.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::corpus::Corpus;
use super::draw::{Custom, Drawing, Group};
use super::order::{BySet, Mixed, Round};
use super::python::Random;
use crate::error::TrainError;

/// In which order examples come.
#[derive(Clone, Debug)]
pub enum Order {
    /// All files mixed.
    Mixed(Mixed),
    /// Batches of one file each.
    BySet(BySet),
}

/// What a rank reads in one micro step.
#[derive(Clone, Debug, PartialEq)]
pub struct Micro {
    /// Numbers of the examples.
    pub examples: Vec<usize>,
    /// A query with its passages for each.
    pub groups: Vec<Group>,
    /// Whether negatives are the own group's alone.
    pub own_group: bool,
}

/// Where a rank's stream stands, for a run that goes on later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Micro steps of it that were read.
    pub micro_step: usize,
    /// Random words drawn.
    pub drawn: u64,
}

/// Which stream it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// This rank.
    pub rank: usize,
    /// Of how many.
    pub ranks: usize,
    /// Passages of a query, the positive first.
    pub group_size: usize,
    /// Of what is drawn: the same on every rank.
    pub seed: u64,
}

/// A rank's examples, without end: an epoch is followed by the next.
#[derive(Clone, Debug)]
pub struct Stream {
    corpus: Corpus,
    drawing: Drawing,
    order: Order,
    reading: Reading,
    random: Random,
    /// The epoch that is being read.
    epoch: u64,
    /// Micro steps of it that were read.
    done: usize,
    /// Those that were not.
    ahead: VecDeque<Ahead>,
}

/// A micro step that was not read yet.
#[derive(Clone, Debug, Default)]
struct Ahead {
    examples: Vec<usize>,
    /// Whether negatives are the own group's alone.
    own_group: bool,
    /// The first example of all ranks', where batches are of one file: groups of all ranks are of its size.
    first: Option<usize>,
}

impl Stream {
    /// A stream at its start.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`] where no epoch holds a single micro step.
    pub fn new(corpus: Corpus, drawing: Drawing, order: Order, reading: Reading) -> Result<Self, TrainError> {
        let random = Random::new(reading.seed);
        let mut stream =
            Self { corpus, drawing, order, reading, random, epoch: 0, done: 0, ahead: VecDeque::new() };
        stream.ahead = stream.rounds();
        if stream.ahead.is_empty() {
            let examples = stream.corpus.len();
            let what =
                format!("{examples} examples do not fill one batch on each of {} ranks", reading.ranks);
            return Err(TrainError::Unsupported(what));
        }
        Ok(stream)
    }

    /// Micro steps that are left of the epoch that is being read; 0 only where it has been read to its end.
    #[must_use]
    pub fn left(&self) -> usize {
        self.ahead.len()
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, micro_step: self.done, drawn: self.random.position().1 }
    }

    /// Goes forward to where it stood; it is at its start.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`] for a position that it never has.
    pub fn seek(&mut self, position: Position) -> Result<(), TrainError> {
        while self.epoch < position.epoch {
            self.turn();
        }
        if position.micro_step > self.ahead.len() {
            let what = format!("the data changed: an epoch has no micro step {}", position.micro_step);
            return Err(TrainError::Unsupported(what));
        }
        self.ahead.drain(..position.micro_step);
        self.done = position.micro_step;
        self.random = Random::at(self.reading.seed, position.drawn);
        Ok(())
    }

    /// The next micro step, of the next epoch where this one is read.
    ///
    /// # Errors
    /// [`TrainError::Format`] names the file and the line that makes no group.
    pub fn read(&mut self) -> Result<Micro, TrainError> {
        if self.ahead.is_empty() {
            self.turn();
        }
        let Ahead { examples, own_group, first } = self.ahead.pop_front().unwrap_or_default();
        self.done += 1;
        let read = examples.iter().map(|&index| self.corpus.read(index)).collect::<Result<Vec<_>, _>>()?;
        let usual = self.reading.group_size;
        let size = match (first, self.drawing.custom) {
            (None, _) => usual,
            // Ranks that disagree cannot exchange their passages.
            (Some(first), Custom::Ours) => self.corpus.read(first)?.group_size(usual),
            (Some(_), Custom::FlagEmbedding) => read.first().map_or(usual, |own| own.group_size(usual)),
        };
        let mut groups = Vec::with_capacity(read.len());
        for (&index, example) in examples.iter().zip(&read) {
            let group = self.drawing.draw(example, size, &mut self.random);
            groups.push(group.map_err(|unfit| self.corpus.fault(index, unfit))?);
        }
        Ok(Micro { examples, groups, own_group })
    }

    fn turn(&mut self) {
        self.epoch += 1;
        self.done = 0;
        self.ahead = self.rounds();
    }

    fn rounds(&mut self) -> VecDeque<Ahead> {
        let Reading { rank, ranks, .. } = self.reading;
        match &mut self.order {
            Order::Mixed(mixed) => {
                let batches = mixed.epoch(self.epoch, rank).into_iter();
                batches.map(|examples| Ahead { examples, ..Ahead::default() }).collect()
            }
            Order::BySet(sets) => {
                let ahead = |round: Round| Ahead {
                    examples: round.of(rank, ranks).to_vec(),
                    own_group: round.own_group,
                    first: round.examples.first().copied(),
                };
                sets.epoch().into_iter().map(ahead).collect()
            }
        }
    }
}
