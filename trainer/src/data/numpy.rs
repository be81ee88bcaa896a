//! NumPy's `default_rng`, as far as the reference uses it: it shuffles batches.
//!
//! Source: NumPy 2, `numpy/random/bit_generator.pyx` and `_generator.pyx`; O'Neill 2014, "PCG".

use rand_pcg::Lcg128Xsl64;
use rand_pcg::rand_core::Rng as _;

/// `numpy.random.default_rng(seed)`.
#[derive(Clone, Debug)]
pub struct Generator {
    pcg: Lcg128Xsl64,
    /// The upper half of a 64-bit number whose lower half was handed out.
    half: Option<u32>,
}

impl Generator {
    /// The generator of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let [a, b, c, d] = seed_state(seed);
        let wide = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        Self { pcg: Lcg128Xsl64::new(wide(a, b), wide(c, d)), half: None }
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.up_to(u32::try_from(last).unwrap_or(u32::MAX));
            items.swap(last, usize::try_from(other).unwrap_or(0));
        }
    }

    /// A number from 0 to `most`, all equally likely: `random_interval`.
    fn up_to(&mut self, most: u32) -> u32 {
        let mask = u32::MAX.checked_shr(most.leading_zeros()).unwrap_or(0);
        loop {
            let drawn = self.word() & mask;
            if drawn <= most {
                return drawn;
            }
        }
    }

    fn word(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let drawn = self.pcg.next_u64();
        let part = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
        self.half = Some(part(drawn >> 32));
        part(drawn)
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_state(seed: u64) -> [u64; 4] {
    let pool = seed_pool(seed);
    let mut hash = Hash { constant: 0x8b51_f9dd, factor: 0x58f3_8ded };
    let mut words = [0; 8];
    for (word, value) in words.iter_mut().zip(pool.iter().cycle()) {
        *word = hash.of(*value);
    }
    [0, 2, 4, 6].map(|at| u64::from(words[at]) | (u64::from(words[at + 1]) << 32))
}

/// The seed's words, each mixed with all others.
fn seed_pool(seed: u64) -> [u32; 4] {
    let part = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
    let mut hash = Hash { constant: 0x43b0_d7e5, factor: 0x931e_8875 };
    let mut pool = [part(seed), part(seed >> 32), 0, 0].map(|word| hash.of(word));
    for from in 0..pool.len() {
        for to in (0..pool.len()).filter(|&to| to != from) {
            let other = hash.of(pool[from]);
            let mixed = pool[to].wrapping_mul(0xca01_f9dd).wrapping_sub(other.wrapping_mul(0x4973_f715));
            pool[to] = mixed ^ (mixed >> 16);
        }
    }
    pool
}

/// A hash whose constant changes with each use.
struct Hash {
    constant: u32,
    factor: u32,
}

impl Hash {
    fn of(&mut self, value: u32) -> u32 {
        let value = value ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.factor);
        let value = value.wrapping_mul(self.constant);
        value ^ (value >> 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seed: u64, expected: [usize; 10]) {
        let mut generator = Generator::new(seed);
        let mut items: Vec<usize> = (0..10).collect();
        generator.shuffle(&mut items);
        assert_eq!(items, expected);
    }

    // What NumPy 2.4 prints.

    #[test]
    fn shuffles_are_those_of_numpy() {
        check(42, [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]);
        check(7, [8, 0, 7, 1, 3, 6, 2, 4, 5, 9]);
        check(1 << 40, [3, 8, 9, 0, 7, 4, 6, 2, 5, 1]);
        let mut generator = Generator::new(42);
        let mut items: Vec<usize> = (0..10).collect();
        generator.shuffle(&mut items);
        generator.shuffle(&mut items);
        assert_eq!(items, [3, 1, 0, 4, 2, 8, 9, 7, 5, 6]);
    }
}
