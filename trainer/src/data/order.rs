//! Which examples a rank sees, and when.

use rand_mt::Mt;

use super::numpy::Generator;

/// Examples of all files mixed, in batches of one size.
#[derive(Clone, Copy, Debug)]
pub struct Mixed {
    /// All examples.
    pub examples: usize,
    /// A rank's batch.
    pub batch: usize,
    /// Ranks.
    pub ranks: usize,
    /// What becomes of the last examples of an epoch.
    pub rest: Rest,
    /// An epoch's order is that of this and the epoch's number.
    pub seed: u64,
}

/// What becomes of the last examples of an epoch, which do not fill a batch on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// They are left out.
    Dropped,
    /// They are filled up from the epoch's start; on one rank they are a short batch.
    Filled,
}

impl Mixed {
    /// Rank `rank`'s batches of an epoch, as `accelerate` deals them out.
    #[must_use]
    pub fn epoch(&self, epoch: u64, rank: usize) -> Vec<Vec<usize>> {
        let order = self.order(epoch);
        let batch = self.batch.max(1);
        let full = order.len() / batch;
        let rounds = full / self.ranks.max(1);
        let own = |round: usize| {
            let start = (round * self.ranks + rank) * batch;
            order[start..start + batch].to_vec()
        };
        let mut batches: Vec<Vec<usize>> = (0..rounds).map(own).collect();
        let rest = &order[rounds * self.ranks * batch..];
        if self.rest == Rest::Filled && !rest.is_empty() {
            // The last round: what is left, and behind it the epoch's start again, in batches that are all full.
            let filled = rest.iter().chain(order.iter().cycle()).copied();
            let last: Vec<usize> =
                if self.ranks == 1 { rest.to_vec() } else { filled.skip(rank * batch).take(batch).collect() };
            batches.push(last);
        }
        batches
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        permutation(self.examples, self.seed.wrapping_add(epoch))
    }
}

/// Beyond so many items torch draws 64 bits at a time.
const MANY: usize = u32::MAX as usize / 20;

/// `torch.randperm(items)` from a generator with this seed.
///
/// Source: libtorch 2.11, `aten/src/ATen/native/TensorFactories.cpp`.
fn permutation(items: usize, seed: u64) -> Vec<usize> {
    let mut twister = Mt::new(u32::try_from(seed & 0xffff_ffff).unwrap_or(0));
    let mut word = || u64::from(twister.next_u32());
    let mut order: Vec<usize> = (0..items).collect();
    for first in 0..items.saturating_sub(1) {
        let drawn = if items < MANY { word() } else { (word() << 32) | word() };
        let left = (items - first) as u64;
        order.swap(first, first + usize::try_from(drawn % left).unwrap_or(0));
    }
    order
}

/// A file, or several small ones together, of which batches are made by themselves.
#[derive(Clone, Debug)]
pub struct Set {
    /// Numbers of its examples.
    pub examples: Vec<usize>,
    /// A rank's batch.
    pub batch: usize,
    /// Whether negatives are the own group's alone.
    pub own_group: bool,
}

/// Batches of one set each, the same set on all ranks.
#[derive(Clone, Debug)]
pub struct BySet {
    sets: Vec<Set>,
    order: Vec<usize>,
    ranks: usize,
    generator: Generator,
}

/// What all ranks see in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Examples of all ranks, a rank's behind the other's.
    pub examples: Vec<usize>,
    /// Whether negatives are the own group's alone.
    pub own_group: bool,
}

impl BySet {
    /// Sets whose order comes from `seed`.
    #[must_use]
    pub fn new(sets: Vec<Set>, ranks: usize, seed: u64) -> Self {
        Self { order: (0..sets.len()).collect(), sets, ranks: ranks.max(1), generator: Generator::new(seed) }
    }

    /// The next epoch's rounds. What does not fill a round is left out.
    pub fn epoch(&mut self) -> Vec<Round> {
        self.generator.shuffle(&mut self.order);
        let mut rounds = Vec::new();
        for &set in &self.order {
            let Set { examples, batch, own_group } = &mut self.sets[set];
            self.generator.shuffle(examples);
            let full = examples.chunks_exact(batch.saturating_mul(self.ranks).max(1));
            rounds.extend(full.map(|examples| Round { examples: examples.to_vec(), own_group: *own_group }));
        }
        self.generator.shuffle(&mut rounds);
        rounds
    }
}

impl Round {
    /// What rank `rank` of `ranks` sees.
    #[must_use]
    pub fn of(&self, rank: usize, ranks: usize) -> &[usize] {
        let share = self.examples.len() / ranks.max(1);
        self.examples.get(rank * share..(rank + 1) * share).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed(examples: usize, ranks: usize, rest: Rest) -> Vec<Vec<Vec<usize>>> {
        let mixed = Mixed { examples, batch: 2, ranks, rest, seed: 42 };
        (0..ranks).map(|rank| mixed.epoch(3, rank)).collect()
    }

    // What torch 2.11 prints.

    #[test]
    fn permutations_are_those_of_torch() {
        assert_eq!(permutation(10, 42), [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]);
        assert_eq!(permutation(10, 45), [7, 6, 5, 3, 4, 9, 0, 8, 2, 1]);
        assert_eq!(permutation(10, (1 << 40) + 3), [6, 0, 3, 7, 8, 5, 1, 9, 2, 4]);
        assert_eq!(permutation(1, 42), [0]);
        assert!(permutation(0, 42).is_empty());
    }

    #[test]
    fn ranks_share_an_epoch_without_overlap() {
        let ranks = mixed(11, 2, Rest::Dropped);
        assert_eq!(ranks.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
        let mut seen: Vec<usize> = ranks.concat().concat();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 8);
    }

    #[test]
    fn a_last_round_is_filled_from_the_start() {
        let ranks = mixed(11, 2, Rest::Filled);
        assert_eq!(ranks.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
        assert!(ranks.iter().flatten().all(|batch| batch.len() == 2));
        assert_eq!(ranks[1][2][1], ranks[0][0][0]);
        let mut seen: Vec<usize> = ranks.concat().concat();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 11);
        let alone = mixed(11, 1, Rest::Filled);
        assert_eq!(alone[0].last().map(Vec::len), Some(1));
        assert_eq!(mixed(1, 2, Rest::Filled)[1], [[0, 0]]);
    }

    #[test]
    fn rounds_are_of_one_set() {
        let set = |examples: std::ops::Range<usize>, batch, own_group| Set {
            examples: examples.collect(),
            batch,
            own_group,
        };
        let mut by_set = BySet::new(vec![set(0..10, 2, false), set(10..17, 1, true)], 2, 42);
        let rounds = by_set.epoch();
        assert_eq!(rounds.iter().filter(|round| !round.own_group).count(), 2);
        assert_eq!(rounds.iter().filter(|round| round.own_group).count(), 3);
        for round in &rounds {
            assert!(round.examples.iter().all(|&example| (example >= 10) == round.own_group));
            assert_eq!([round.of(0, 2), round.of(1, 2)].concat(), round.examples);
        }
        assert_ne!(by_set.epoch(), rounds);
    }
}
