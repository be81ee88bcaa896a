//! A worker: checkpoints on one device, served to gateways.
//!
//! A shard of a call is parsed ([`wire`]), admitted by tokens ([`load`]), tokenised on threads of its own
//! ([`tokenise`]), and queued; the [`queue`] is cut into batches ([`schedule`]) by the one task that owns it
//! ([`engine`]); a thread that owns the device runs them ([`device`], [`bisect`]); rows become bytes ([`vectors`]).
//!
//! What a worker deliberately does not know: what a name means at present, other workers, and how a call was split.

pub mod apart;
pub mod bisect;
pub mod call;
pub mod catalogue;
pub mod config;
mod deadline;
pub mod device;
pub mod engine;
pub mod error;
pub mod golden;
pub mod health;
pub mod launch;
pub mod load;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod pace;
pub mod prepare;
pub mod queue;
pub mod register;
pub mod schedule;
pub mod service;
pub mod shelf;
pub mod shutdown;
pub mod spec;
pub mod start;
mod status;
pub mod tokenise;
pub mod trial;
pub mod vectors;
pub mod warm;
pub mod wire;
