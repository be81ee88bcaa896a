//! Fine-tuning: data, losses, steps, ranks; and the replay of recorded runs of the reference, `FlagEmbedding`.

pub mod data;
mod error;
pub mod loss;
pub mod objective;
pub mod optimizer;
pub mod schedule;
pub mod trace;

pub use error::TrainError;
