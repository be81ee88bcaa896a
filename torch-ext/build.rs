//! Compiles the C++ shim against the headers of the libtorch that tch uses.

#![allow(clippy::print_stdout)] // How a build script speaks to cargo.

#[path = "link.rs"]
mod link;

use std::env::var_os;
use std::path::{Path, PathBuf};

fn main() {
    link::main();
    println!("cargo::rerun-if-changed=shim");
    let lib = PathBuf::from(var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is"));
    let include = lib.with_file_name("include");
    let mut shim = cc::Build::new();
    shim.cpp(true)
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
        .file("shim/c10d.cpp");
    let cuda = var_os("CARGO_FEATURE_NCCL").map(|_| link::cuda(&lib));
    if let Some(cuda) = &cuda {
        let headers = headers(cuda);
        shim.includes(headers)
            .flag_if_supported("-Wno-interference-size")
            .define("USE_C10D_NCCL", None)
            .file("shim/nccl.cpp");
    }
    shim.compile("torch_ext_shim");
    // Loops alone, for which it pays.
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .debug(false)
        .file("shim/thinning.cpp")
        .compile("torch_ext_loops");
    if let Some(cuda) = &cuda {
        // After the shim, which refers to them.
        println!("cargo::rustc-link-search=native={}", cuda.display());
        println!("cargo::rustc-link-lib=torch_cuda");
        println!("cargo::rustc-link-lib=c10_cuda");
    }
}

/// Directories with the headers of CUDA and NCCL: of `CUDA_HOME` and `NCCL_HOME`, of the wheels `nvidia-*` that are installed
/// beside the one that has `cuda`, and of the system.
///
/// # Panics
/// When there are none.
fn headers(cuda: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in ["CUDA_HOME", "NCCL_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
        found.extend(var_os(name).map(|home| Path::new(&home).join("include")));
    }
    let wheels = cuda.join("../../nvidia");
    found.extend(["cu13/include", "nccl/include"].map(|part| wheels.join(part)));
    found.extend(["/usr/local/cuda/include", "/usr/include"].map(PathBuf::from));
    // The toolkit keeps those of its C++ library apart.
    found = found.into_iter().flat_map(|dir| [dir.join("cccl"), dir]).filter(|dir| dir.is_dir()).collect();
    for header in ["cuda_runtime.h", "nccl.h"] {
        assert!(
            found.iter().any(|dir| dir.join(header).is_file()),
            "the feature nccl wants {header}: set CUDA_HOME and NCCL_HOME, or see docs/fine-tuning.md for where \
             it is looked for"
        );
    }
    found.retain(|dir| dir != Path::new("/usr/include"));
    found
}
