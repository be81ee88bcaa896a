//! Fine-tuning: data, losses, steps, ranks; and the replay of recorded runs of the reference, `FlagEmbedding`.

pub mod collective;
pub mod data;
mod error;
pub mod loss;
pub mod objective;
pub mod optimizer;
pub mod schedule;
pub mod step;
pub mod trace;

pub use error::TrainError;
