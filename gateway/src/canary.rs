//! Which callers try a new checkpoint first: always the same ones for one swap, and others for the next.

use cluster::Canary;
use sha2::{Digest as _, Sha256};

/// What parts of callers are counted in.
const ALL: u64 = 1000;

/// Whether `caller` is among those that `canary` takes. Every gateway of every release answers alike.
#[must_use]
pub fn takes(canary: &Canary, caller: &str) -> bool {
    let mut hasher = Sha256::new();
    hasher.update(&canary.salt);
    hasher.update([0]);
    hasher.update(caller);
    let hash: [u8; 32] = hasher.finalize().into();
    let draw = hash[..8].iter().fold(0, |draw, &byte| (draw << 8) | u64::from(byte)) % ALL;
    draw < u64::from(canary.per_mille)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary(per_mille: u32, salt: &str) -> Canary {
        Canary { digest: "d".into(), per_mille, salt: salt.into() }
    }

    fn taken(canary: &Canary) -> Vec<usize> {
        (0..2000).filter(|i| takes(canary, &format!("caller {i}"))).collect()
    }

    #[test]
    fn as_many_are_taken_as_asked_for() {
        assert!(taken(&canary(0, "s")).is_empty());
        assert_eq!(taken(&canary(1000, "s")).len(), 2000);
        let tenth = taken(&canary(100, "s")).len();
        assert!((120..=280).contains(&tenth), "{tenth}");
    }

    #[test]
    fn a_larger_part_holds_the_smaller_one() {
        let (few, many) = (taken(&canary(50, "s")), taken(&canary(200, "s")));
        assert!(few.iter().all(|caller| many.contains(caller)));
    }

    #[test]
    fn another_swap_takes_others() {
        assert_ne!(taken(&canary(100, "s")), taken(&canary(100, "t")));
    }

    #[test]
    fn the_hash_is_the_same_in_every_release() {
        let first: Vec<_> = taken(&canary(10, "salt")).into_iter().take(3).collect();
        assert_eq!(first, [31, 34, 42]);
    }
}
