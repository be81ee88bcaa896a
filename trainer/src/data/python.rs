//! Python's `random.Random`, number by number: the reference draws positives and negatives from it.
//!
//! Source: `CPython` 3.11, `Lib/random.py` and `Modules/_randommodule.c`.

use std::collections::HashSet;

use rand_mt::Mt;

/// A stream of random numbers. Its state is its seed and how many words were drawn.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    drawn: u64,
    twister: Mt,
}

impl Random {
    /// `random.Random(seed)`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let words = [seed, seed >> 32].map(|word| u32::try_from(word & 0xffff_ffff).unwrap_or(0));
        let key = if words[1] == 0 { &words[..1] } else { &words[..] };
        Self { seed, drawn: 0, twister: Mt::new_with_key(key.iter().copied()) }
    }

    /// The stream of `seed` behind its first `drawn` words.
    #[must_use]
    pub fn at(seed: u64, drawn: u64) -> Self {
        let mut random = Self::new(seed);
        for _ in 0..drawn {
            random.word();
        }
        random
    }

    /// Seed and words drawn: where [`Random::at`] goes on.
    #[must_use]
    pub fn position(&self) -> (u64, u64) {
        (self.seed, self.drawn)
    }

    /// A number from 0 below 1: `random()`.
    #[allow(clippy::cast_precision_loss)] // 53 bits.
    pub fn random(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        ((u64::from(high) << 26) + u64::from(low)) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `n`, which is at least 1: `_randbelow(n)`, and thus `choice` of `n`.
    pub fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = self.bits(bits);
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `count` of the first `n` numbers, each at most once: `sample(range(n), count)`.
    ///
    /// # Panics
    /// When there are fewer than `count`.
    pub fn sample(&mut self, n: usize, count: usize) -> Vec<usize> {
        assert!(count <= n, "a sample of {count} out of {n}");
        if n > pool_limit(count) {
            let (mut chosen, mut seen) = (Vec::with_capacity(count), HashSet::with_capacity(count));
            while chosen.len() < count {
                let drawn = self.below(n);
                if seen.insert(drawn) {
                    chosen.push(drawn);
                }
            }
            return chosen;
        }
        let mut pool: Vec<usize> = (0..n).collect();
        (0..count)
            .map(|taken| {
                let at = self.below(n - taken);
                let last = pool[n - taken - 1];
                std::mem::replace(&mut pool[at], last)
            })
            .collect()
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }

    /// `getrandbits(bits)`, of at most 64.
    fn bits(&mut self, bits: u32) -> usize {
        let low = u64::from(self.word() >> (32 - bits.min(32)));
        let high = if bits > 32 { u64::from(self.word() >> (64 - bits)) << 32 } else { 0 };
        usize::try_from(low | high).unwrap_or(usize::MAX)
    }

    fn word(&mut self) -> u32 {
        self.drawn += 1;
        self.twister.next_u32()
    }
}

/// Up to how many the sample is taken out of a list instead of being drawn until there are enough.
fn pool_limit(count: usize) -> usize {
    if count <= 5 {
        return 21;
    }
    // The least power of 4 that is at least three times as many.
    let mut power = 4;
    while power < count * 3 {
        power *= 4;
    }
    21 + power
}

#[cfg(test)]
mod tests {
    use super::*;

    // What CPython 3.11 prints.

    #[test]
    fn numbers_are_those_of_cpython() {
        let mut random = Random::new(42);
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-16, "{found}");
        close(random.random(), 0.639_426_798_457_883_7);
        close(random.random(), 0.025_010_755_222_666_936);
        assert_eq!([random.below(10), random.below(1), random.below(1000)], SMALL);
        let mut items: Vec<usize> = (0..8).collect();
        random.shuffle(&mut items);
        assert_eq!(items, SHUFFLED);
        assert_eq!(random.sample(10, 3), FROM_POOL);
        assert_eq!(random.sample(1000, 3), FROM_MANY);
        assert_eq!(random.sample(80, 7), FROM_EIGHTY);
        let wide = Random::new(1 << 40).random();
        close(wide, WIDE);
    }

    #[test]
    fn a_stream_goes_on_where_it_was() {
        let mut random = Random::new(7);
        random.sample(100, 9);
        let (seed, drawn) = random.position();
        let mut again = Random::at(seed, drawn);
        assert_eq!(random.sample(50, 5), again.sample(50, 5));
    }

    #[test]
    fn samples_hold_nothing_twice() {
        let mut random = Random::new(3);
        for (n, count) in [(4, 4), (30, 4), (500, 20), (90, 7), (22, 0)] {
            let mut sample = random.sample(n, count);
            sample.sort_unstable();
            sample.dedup();
            assert!(sample.len() == count && sample.iter().all(|&i| i < n));
        }
    }

    const SMALL: [usize; 3] = [4, 0, 228];
    const SHUFFLED: [usize; 8] = [3, 1, 7, 6, 4, 0, 5, 2];
    const FROM_POOL: [usize; 3] = [0, 9, 1];
    const FROM_MANY: [usize; 3] = [223, 238, 517];
    const FROM_EIGHTY: [usize; 7] = [77, 3, 71, 25, 69, 53, 28];
    const WIDE: f64 = 0.103_639_456_281_237_5;
}
