//! The error channel between the shim and us.

use std::ffi::{CStr, c_char, c_int};

use tch::Tensor;
use thiserror::Error;
use torch_sys::C_tensor;

/// Why libtorch did not do it.
#[derive(Debug, Error)]
pub enum TorchError {
    /// Ask for less.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The call does not fit its arguments, or this libtorch cannot do it here.
    #[error("{0}")]
    Failed(String),
}

const OUT_OF_MEMORY: c_int = 2;

unsafe extern "C" {
    safe fn beige_last_error() -> *const c_char;
}

/// Runs a function of the shim that writes a new tensor through its last argument.
pub(crate) fn call(shim: impl FnOnce(*mut *mut C_tensor) -> c_int) -> Result<Tensor, TorchError> {
    let mut out = std::ptr::null_mut();
    check(shim(&raw mut out))?;
    // SAFETY: on success the shim has written a tensor that is ours.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// What a function of the shim returned.
pub(crate) fn check(code: c_int) -> Result<(), TorchError> {
    match code {
        0 => Ok(()),
        OUT_OF_MEMORY => Err(TorchError::OutOfMemory(last_error())),
        _ => Err(TorchError::Failed(last_error())),
    }
}

fn last_error() -> String {
    // SAFETY: the shim returns a string of this thread that lives until its next call.
    let text = unsafe { CStr::from_ptr(beige_last_error()) };
    // libtorch appends a C++ backtrace; the first line is what a person can use.
    text.to_string_lossy().lines().next().unwrap_or_default().to_owned()
}
