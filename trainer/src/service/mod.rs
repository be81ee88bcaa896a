//! The job service: jobs are submitted, checked whole, queued by device, run by rank processes, and end as versions of a
//! model.
//!
//! What is known of a job is in etcd, written by the trainer that owns it; what it makes is in files. A trainer that dies
//! loses its lease and with it its jobs, which another one, or itself once it is back, goes on with from their newest
//! checkpoints.

mod api;
mod attempt;
mod config;
mod devices;
mod fields;
mod foreman;
mod gateway;
mod handover;
mod journal;
mod queue;
mod ranks;
mod retention;
mod root;
mod serve;
mod shelf;
mod spec;
mod wire;

pub use config::{Config, InvalidConfig, ServeArgs, set_up_models};
pub use fields::Fault;
pub use ranks::TRY_AGAIN;
pub use serve::{Failure, serve};
pub use spec::{EXAMPLE, Gate, Publish, Spec};
