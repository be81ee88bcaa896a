//! Settings of the process that libtorch lives in.

use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;

use crate::error::TorchError;

/// Blocks below this many bytes come from the heap and stay with the process when freed.
const HEAP_BLOCK: libc::c_int = 1 << 30;
/// Free bytes at the end of the heap beyond which they are given back.
const HEAP_SLACK: libc::c_int = 256 << 20;

/// Lets the C allocator keep what is freed, for the next batch to use.
///
/// Without it every activation of a batch is a fresh mapping whose pages the kernel clears one fault at a
/// time, several times per layer. Call it before the first thread starts.
pub fn keep_freed_memory() {
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, HEAP_BLOCK), (libc::M_TRIM_THRESHOLD, HEAP_SLACK)] {
        // SAFETY: both parameters take any value; the call changes no memory of ours.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Loads `libtorch_cuda.so` into the process, which registers its kernels with the dispatcher.
///
/// It is looked for in `directory` when one is given, else where the loader looks. Programs are linked with the
/// CPU half of libtorch alone, so that one build serves machines with and without a GPU.
///
/// # Errors
/// [`TorchError::Failed`] with the loader's own words.
pub fn load_cuda(directory: Option<&Path>) -> Result<(), TorchError> {
    let name = Path::new("libtorch_cuda.so");
    let path = directory.map_or_else(|| name.to_owned(), |directory| directory.join(name));
    let path = CString::new(path.into_os_string().into_encoded_bytes())
        .map_err(|_| TorchError::Failed("the path of libtorch_cuda.so holds a zero byte".into()))?;
    // SAFETY: the path is a C string; the library's initialisers are libtorch's own.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() { Err(TorchError::Failed(loader_error())) } else { Ok(()) }
}

fn loader_error() -> String {
    // SAFETY: `dlerror` returns null or a string of this thread that lives until its next call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return io::Error::last_os_error().to_string();
    }
    // SAFETY: not null, as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
