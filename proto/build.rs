//! Compiles the `.proto` files, in Rust alone: no `protoc` is needed on the machine.

#![allow(clippy::print_stdout)] // How a build script speaks to cargo.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const FILES: &[&str] = &[
    "beige/v1/checkpoints.proto",
    "beige/v1/cluster.proto",
    "beige/v1/embeddings.proto",
    "beige/v1/models.proto",
    "beige/v1/provenance.proto",
    "beige/v1/reranking.proto",
    "beige/v1/swaps.proto",
    "beige/v1/tokens.proto",
    "beige/v1/training.proto",
    "beige/worker/v1/worker.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=beige");
    let descriptors = protox::compile(FILES, ["."])?;
    // What reflection serves: the public package alone.
    let mut public = descriptors.clone();
    public.file.retain(|file| file.package() == "beige.v1");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("beige.v1.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::Codec")
        .bytes(".beige.v1.Vectors.data")
        .compile_fds(descriptors)?;
    Ok(())
}
