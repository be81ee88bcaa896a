//! How much memory a checkpoint takes, before it is loaded.

use std::fs;

use crate::checkpoint::Checkpoint;
use crate::device::{Device, Instructions, Precision, candidates};
use crate::error::LoadError;
use crate::weights::Weights;

/// What tensors that are looked up rather than multiplied end in.
const TABLE: &str = "_embeddings.weight";
/// Memory of a tokenizer for each byte of its files: measured 17 to 23 for WordPiece, 46 for XLM-RoBERTa's Unigram.
const TOKENIZER: u64 = 48;

/// Memory that a checkpoint takes, in bytes: estimates that err on the large side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// On the device, in the largest kind of number that may be tried.
    pub device: u64,
    /// Of the process, beside that.
    pub host: u64,
}

impl Checkpoint {
    /// What its model and tokenizer will take on `device`. Reads the headers of its weights alone.
    ///
    /// # Errors
    /// As loading it.
    pub fn footprint(&self, device: Device, precision: Precision) -> Result<Footprint, LoadError> {
        let kinds = candidates(device, precision, Instructions::detect())?;
        let width = kinds.iter().map(|kind| kind.elt_size_in_bytes() as u64).max().unwrap_or(0);
        let weights = Weights::open(self.dir())?;
        let bytes = |(name, numbers, stored): (&str, u64, u64)| match (name.ends_with(TABLE), device) {
            // It stays in the file, whose pages belong to the system.
            (true, Device::Cpu) => 0,
            (true, Device::Cuda(_)) => stored,
            (false, Device::Cpu | Device::Cuda(_)) => numbers * width,
        };
        let model = weights.sizes().map(bytes).sum();
        let size = |path| fs::metadata(self.dir().join(path)).map_or(0, |meta| meta.len());
        let tokenizer = TOKENIZER * self.tokenizer_files().iter().map(size).sum::<u64>();
        Ok(match device {
            Device::Cpu => Footprint { device: model + tokenizer, host: 0 },
            Device::Cuda(_) => Footprint { device: model, host: tokenizer },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::Overrides;

    #[test]
    fn tables_count_where_they_are_copied_to() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints/bert-cls");
        let checkpoint = Checkpoint::open(&dir, &Overrides::default()).unwrap();
        let weights = Weights::open(&dir).unwrap();
        let numbers = |table: bool| -> u64 {
            let of = weights.sizes().filter(|(name, ..)| name.ends_with(TABLE) == table);
            of.map(|(_, numbers, _)| numbers).sum()
        };
        assert!(numbers(true) > 0 && numbers(false) > 0);

        let cpu = checkpoint.footprint(Device::Cpu, Precision::F32).unwrap();
        let cuda = checkpoint.footprint(Device::Cuda(0), Precision::Bf16).unwrap();
        assert_eq!(cpu.device - cuda.host, 4 * numbers(false));
        assert_eq!(cuda.device, 2 * numbers(false) + 4 * numbers(true), "tables as they are stored");
    }
}
