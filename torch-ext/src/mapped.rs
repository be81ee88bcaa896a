//! Tensors over a mapped file: weights are read where they lie, and pages are given back after use.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::{TorchError, call};

unsafe extern "C" {
    fn beige_borrow(
        data: *mut c_void,
        shape: *const i64,
        rank: i64,
        kind: i8,
        owner: *mut c_void,
        release: extern "C" fn(*mut c_void),
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// A file in memory, read on demand. Private: writes to its tensors stay in this process.
///
/// Whoever cuts the file short while it is mapped kills this process when the lost part is read: serve
/// checkpoints from directories that are replaced, never rewritten.
#[derive(Clone, Debug)]
pub struct MappedFile(Arc<MmapMut>);

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// As the operating system has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private; that nobody truncates the file is the documented condition.
        let map = unsafe { MmapOptions::new().map_copy(&file)? };
        Ok(Self(Arc::new(map)))
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A tensor over bytes of the file, which stays mapped as long as the tensor lives.
    ///
    /// # Errors
    /// [`TorchError::Failed`] when the range is not inside the file, is not of the shape's size, or starts where
    /// numbers of this kind cannot.
    pub fn tensor(&self, range: Range<usize>, shape: &[i64], kind: Kind) -> Result<Tensor, TorchError> {
        let width = kind.elt_size_in_bytes();
        let count = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        let wanted = count.and_then(|n| n.checked_mul(width));
        let bytes = self.0.get(range.clone()).filter(|bytes| Some(bytes.len()) == wanted);
        let Some(bytes) = bytes.filter(|bytes| bytes.as_ptr().addr().is_multiple_of(width)) else {
            return Err(TorchError::Failed(format!(
                "bytes {range:?} do not hold {shape:?} numbers of {kind:?}"
            )));
        };
        let rank =
            i64::try_from(shape.len()).map_err(|_| TorchError::Failed("too many dimensions".into()))?;
        let kind = number(kind)?;
        let (data, shape) = (bytes.as_ptr().cast_mut().cast(), shape.as_ptr());
        let owner = Arc::into_raw(Arc::clone(&self.0)).cast_mut().cast();
        // SAFETY: the bytes are as many as the shape needs, aligned, writable (the mapping is private), and
        // live until `release` gives the reference back.
        let tensor = call(|out| unsafe { beige_borrow(data, shape, rank, kind, owner, release, out) });
        if tensor.is_err() {
            release(owner);
        }
        tensor
    }

    /// Gives the pages inside a range back to the operating system; they are read again when touched.
    ///
    /// # Errors
    /// As the operating system has it.
    pub fn forget(&self, range: Range<usize>) -> io::Result<()> {
        // SAFETY: nothing of ours writes to the mapping, so dropped pages come back with the file's bytes.
        unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) }
    }
}

/// `c10::ScalarType` of the kinds that weights are stored in.
fn number(kind: Kind) -> Result<i8, TorchError> {
    let known = [(Kind::Half, 5), (Kind::Float, 6), (Kind::BFloat16, 15)];
    let found = known.into_iter().find_map(|(known, number)| (known == kind).then_some(number));
    found.ok_or_else(|| TorchError::Failed(format!("weights of {kind:?} cannot be mapped")))
}

extern "C" fn release(owner: *mut c_void) {
    // SAFETY: `owner` came from `Arc::into_raw`, and the shim calls this once.
    drop(unsafe { Arc::from_raw(owner.cast::<MmapMut>().cast_const()) });
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn mapped(numbers: &[f32]) -> MappedFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for number in numbers {
            file.write_all(&number.to_le_bytes()).unwrap();
        }
        MappedFile::open(file.path()).unwrap()
    }

    #[test]
    fn a_tensor_keeps_the_file_mapped() {
        let file = mapped(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        let tensor = file.tensor(4..20, &[2, 2], Kind::Float).unwrap();
        file.forget(0..20).unwrap();
        drop(file);
        assert_eq!(Vec::<f32>::try_from(tensor.reshape([4])).unwrap(), [2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn ranges_that_do_not_fit_are_an_error() {
        let file = mapped(&[1.0, 2.0, 3.0]);
        for (range, shape) in [(0..16, [4]), (0..8, [3]), (2..10, [2]), (0..12, [-3])] {
            file.tensor(range, &shape, Kind::Float).unwrap_err();
        }
    }
}
