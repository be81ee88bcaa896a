//! The parts of libtorch that tch does not wrap, and the only unsafe code of the project.
//!
//! Every C++ call goes through one macro on each side: `guarded` in the shim turns exceptions into numbers,
//! `error::call` turns numbers into [`TorchError`]. What comes out are ordinary [`tch::Tensor`]s.

mod adamw;
mod attention;
mod c10d;
mod dropout;
mod error;
mod linear;
mod mapped;
mod runtime;

pub use adamw::{AdamW, Moved};
pub use attention::varlen_attention;
pub use c10d::{Group, Seat, Store};
pub use dropout::dropout;
pub use error::TorchError;
pub use linear::{Activation, PackedLinear, linear};
pub use mapped::MappedFile;
pub use runtime::{DeviceMemory, cuda_memory, exit_now, keep_memory, keep_products, load_cuda, trim_memory};
