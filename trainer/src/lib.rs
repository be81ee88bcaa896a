//! Fine-tuning: data, losses, steps, ranks; and the replay of recorded runs of the reference, `FlagEmbedding`.

pub mod checkpoint;
pub mod collective;
pub mod data;
mod error;
pub mod evaluate;
pub mod exchange;
pub mod golden;
pub mod job;
pub mod loss;
pub mod objective;
pub mod optimizer;
pub mod rank;
pub mod scaler;
pub mod schedule;
pub mod service;
pub mod step;
pub mod trace;
pub mod trained;

pub use error::TrainError;
