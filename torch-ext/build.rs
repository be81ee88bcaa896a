//! Compiles the C++ shim against the headers of the libtorch that tch uses.

#![allow(clippy::print_stdout)] // How a build script speaks to cargo.

#[path = "link.rs"]
mod link;

use std::path::PathBuf;

fn main() {
    link::main();
    println!("cargo::rerun-if-changed=shim");
    let lib = std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    let include = PathBuf::from(lib).with_file_name("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(1)
        .debug(false)
        .warnings(false) // libtorch's headers have their own.
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("USE_C10D_GLOO", None)
        .file("shim/shim.cpp")
        .file("shim/linear.cpp")
        .file("shim/dropout.cpp")
        .file("shim/c10d.cpp")
        .compile("torch_ext_shim");
    // Loops alone, for which it pays.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .debug(false)
        .file("shim/thinning.cpp")
        .compile("torch_ext_loops");
}
