//! Settings of the process that libtorch lives in.

use std::ffi::{CStr, CString, c_int};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use crate::error::{TorchError, check};

unsafe extern "C" {
    fn beige_cuda_memory(device: i8, free: *mut u64, total: *mut u64) -> c_int;
}

/// Gives freed memory back to the operating system: what parsing and packing left behind.
pub fn trim_memory() {
    // SAFETY: the call moves nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Has memory that is freed stay with the process, for a loop that asks for as much again and again: what goes back to the
/// operating system comes back as pages that have to be cleared.
pub fn keep_memory() {
    // SAFETY: the calls set numbers of the allocator, under its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// Has oneDNN keep `count` prepared matrix products for the next of their shapes, and not 1,024, unless the environment
/// says how many. Each holds code of its own, about 0.6 MB, and where sequences are laid end to end hardly two steps have
/// one shape. Nothing is done where the process has more threads than one: they may be reading the environment.
/// To be called before the first product.
#[allow(
    clippy::disallowed_methods,
    reason = "oneDNN takes it from nowhere else, and nobody else is there to read it"
)]
pub fn keep_products(count: usize) {
    const VARIABLE: &str = "ONEDNN_PRIMITIVE_CACHE_CAPACITY";
    let threads = fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count);
    if threads == 1 && env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread is there to read or write the environment.
        unsafe { env::set_var(VARIABLE, count.to_string()) };
    }
}

/// Ends the process at once, without running destructors of libraries: a thread that is inside libtorch would find
/// its tables gone and take the process down with a fault.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: the call does not return, and leaves no memory behind.
    unsafe { libc::_exit(code.into()) }
}

/// Loads `libtorch_cuda.so` into the process, which registers its kernels with the dispatcher.
///
/// Programs are linked with the CPU half of libtorch alone, so that one build serves machines with and without
/// a GPU. The CUDA half lies beside it, or in the directory that a file `cuda-path` beside it names.
///
/// # Errors
/// [`TorchError::Failed`] with the loader's own words.
pub fn load_cuda() -> Result<(), TorchError> {
    let failed =
        |error: io::Error| TorchError::Failed(format!("libtorch_cpu.so is not to be found: {error}"));
    let beside = libtorch_directory().map_err(failed)?;
    let directory = match fs::read_to_string(beside.join("cuda-path")) {
        Ok(path) => PathBuf::from(path.trim_end()),
        Err(_) => beside,
    };
    let path = directory.join("libtorch_cuda.so").into_os_string().into_encoded_bytes();
    let path = CString::new(path).map_err(|error| TorchError::Failed(error.to_string()))?;
    // SAFETY: the path is a C string; the library's initialisers are libtorch's own.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() { Err(TorchError::Failed(loader_error())) } else { Ok(()) }
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that nothing uses, in this process or another.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Memory of a CUDA device. What libtorch keeps for later is given back to the device first.
///
/// # Errors
/// [`TorchError::Failed`] where there is no such device, or [`load_cuda`] was not called.
pub fn cuda_memory(device: usize) -> Result<DeviceMemory, TorchError> {
    let device = i8::try_from(device).map_err(|error| TorchError::Failed(error.to_string()))?;
    let mut memory = DeviceMemory { free: 0, total: 0 };
    // SAFETY: the shim writes two numbers to where two numbers are.
    check(unsafe { beige_cuda_memory(device, &raw mut memory.free, &raw mut memory.total) })?;
    Ok(memory)
}

/// Where this process's libtorch was loaded from.
fn libtorch_directory() -> io::Result<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5)).map(Path::new);
    let found = paths.into_iter().find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"));
    found.and_then(Path::parent).map(Path::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_has_no_memory() {
        tch::set_num_threads(1); // A use of libtorch, so that the linker keeps it.
        assert!(matches!(cuda_memory(0), Err(TorchError::Failed(_))));
        assert!(matches!(cuda_memory(1000), Err(TorchError::Failed(_))));
    }

    #[test]
    fn libtorch_is_found_where_it_was_loaded_from() {
        tch::set_num_threads(1); // A use of libtorch, so that the linker keeps it.
        assert!(libtorch_directory().unwrap().join("libc10.so").exists());
    }
}
