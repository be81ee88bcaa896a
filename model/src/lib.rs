//! Tokenizers, checkpoints and encoders of the BGE family; what is trained is what is served.
//!
//! [`Checkpoint::open`] reads and hashes a directory in the Hugging Face layout, [`Checkpoint::tokenizer`] makes
//! token [`Sequence`]s of texts on any thread, and a [`Model`] turns batches of them into [`Rows`] on the one
//! thread that owns its device.

mod adapter;
mod anew;
mod body;
mod checkpoint;
mod config;
mod device;
mod dropout;
mod encoder;
mod error;
mod footprint;
mod head;
mod layers;
mod layout;
mod modules;
mod pickle;
mod saved;
mod sequence;
mod state_dict;
mod tokenizer;
mod trainee;
mod weights;

pub use adapter::Lora;
pub use anew::{complete_heads, lacking_heads};
pub use checkpoint::{Card, Checkpoint, Overrides};
pub use config::Kind;
pub use device::{Device, Instructions, Precision, gemm_rate, prepare, reach, set_threads, supports};
pub use dropout::Dropout;
pub use encoder::Model;
pub use error::{DeviceError, LoadError, RunError};
pub use footprint::Footprint;
pub use manifest::{Manifest, ManifestFile};
pub use modules::Pooling;
pub use sequence::{Rows, Sequence, normalize};
pub use tokenizer::{SpecialTokens, Token, TokenizeError, Tokenizer, Truncation};
pub use torch_ext::{DeviceMemory, exit_now};
pub use trainee::{Hidden, Laying, Manner, Parameter, Products, Task, Trainee, normalized, seed};
