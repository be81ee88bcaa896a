//! Build script of every crate whose programs load libtorch: tells them where it is.
//!
//! Programs look beside themselves (`../lib`, as in an image) before they look where libtorch was at build time.

#![allow(clippy::print_stdout)] // How a build script speaks to cargo.

/// Adds the run-time search paths.
///
/// # Panics
/// When `LIBTORCH` is not set: `scripts/setup` makes the prefix that `.cargo/config.toml` names.
pub(crate) fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    let libtorch =
        std::env::var_os("LIBTORCH").expect("LIBTORCH names the libtorch prefix; run `make setup`");
    let lib = std::path::Path::new(&libtorch).join("lib");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{}", lib.display());
    // libtorch_cpu.so refers to CUDA's profiler, which its own run path finds; the linker need not.
    println!("cargo::rustc-link-arg=-Wl,--unresolved-symbols=ignore-in-shared-libs");
}
