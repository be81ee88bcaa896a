//! Build script of every crate whose programs load libtorch: tells them where it is.
//!
//! Programs look beside themselves (`../lib`, as in an image) before they look where libtorch was at build time.

#![allow(clippy::print_stdout)] // How a build script speaks to cargo.

use std::path::{Path, PathBuf};

/// Adds the run-time search paths.
///
/// # Panics
/// When `LIBTORCH` is not set: `scripts/setup` makes the prefix that `.cargo/config.toml` names.
pub(crate) fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let libtorch =
        std::env::var_os("LIBTORCH").expect("LIBTORCH names the libtorch prefix; run `make setup`");
    let lib = Path::new(&libtorch).join("lib");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{}", lib.display());
    let cuda = cuda(&lib);
    if cuda != lib {
        // Last: what both have is that of the first.
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", cuda.display());
    }
    // libtorch_cpu.so refers to CUDA's profiler, which its own run path finds; the linker need not.
    println!("cargo::rustc-link-arg=-Wl,--unresolved-symbols=ignore-in-shared-libs");
}

/// Where CUDA's half of libtorch is, if it is there: in the directory that the file `cuda-path` names, else beside the
/// other half.
pub(crate) fn cuda(lib: &Path) -> PathBuf {
    let named = std::fs::read_to_string(lib.join("cuda-path"));
    named.map_or_else(|_| lib.to_owned(), |path| PathBuf::from(path.trim_end()))
}
