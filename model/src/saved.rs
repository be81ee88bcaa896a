//! Weights as files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, View};
use tch::{TchError, Tensor};

use crate::error::LoadError;
use crate::state_dict;
use crate::weights::Stored;

/// Writes tensors by their names as one `*.safetensors` file.
///
/// # Errors
/// [`LoadError::Format`] when it cannot be written.
pub(crate) fn write<N: AsRef<str> + Ord + std::fmt::Display>(
    path: &Path,
    tensors: Vec<(N, Saved<'_>)>,
) -> Result<(), LoadError> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(tensors, Some(metadata), path);
    written.map_err(|error| LoadError::format(path, error))
}

/// Writes a linear layer to `dir`, as the reference has bge-m3's heads: a file of `torch.save`, named after it. Answers
/// the file.
///
/// # Errors
/// [`LoadError::Read`] when it cannot be written, [`LoadError::Torch`].
pub(crate) fn write_head(
    dir: &Path,
    head: &str,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<PathBuf, LoadError> {
    let parts = [("weight", Saved::of(weight)?), ("bias", Saved::of(bias)?)];
    let tensors = parts.each_ref().map(|(name, part)| (*name, part.shape.as_slice(), &*part.bytes));
    let path = dir.join(format!("{head}.pt"));
    state_dict::write(&path, &tensors).map_err(|source| LoadError::Read { path: path.clone(), source })?;
    Ok(path)
}

/// A tensor as it is written.
pub(crate) struct Saved<'a> {
    bytes: Cow<'a, [u8]>,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl<'a> Saved<'a> {
    /// A tensor of single precision.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self, TchError> {
        let shape = tensor.size().into_iter().map(|n| usize::try_from(n).unwrap_or(0)).collect();
        let tensor = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * size_of::<f32>()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        Ok(Self { bytes: bytes.into(), shape, dtype: Dtype::F32 })
    }

    /// One that is written as it was read.
    pub(crate) fn stored(stored: Stored<'a>) -> Self {
        let shape = stored.shape.into_iter().map(|n| usize::try_from(n).unwrap_or(0)).collect();
        Self { bytes: stored.bytes.into(), shape, dtype: stored.dtype }
    }
}

impl View for Saved<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
