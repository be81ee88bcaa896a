//! The gateway: takes calls, and has workers answer them.
//!
//! A call is [parsed](wire), [pinned](pinning) to one checkpoint, [admitted](admit), [split], sent to
//! [workers](route), [tried again](retry) where one fails, and [merged](merge). [`run`] serves until told to stop;
//! both its ends, sockets and the view of the cluster, are handed in, so that a test can hold them.
//!
//! It never links libtorch, has no tokenizer, and keeps nothing on disk.

pub mod admit;
mod ask;
pub mod busy;
pub mod call;
pub mod canary;
pub mod checkpoint;
pub mod choice;
pub mod config;
pub mod control;
pub mod deadline;
pub mod departures;
pub mod drain;
pub mod edge;
pub mod error;
pub mod estimate;
pub mod fleet;
pub mod gauges;
pub mod goodbye;
pub mod guard;
pub mod hedge;
pub mod keys;
pub mod likeness;
pub mod link;
pub mod merge;
pub mod method;
pub mod metrics;
pub mod names;
pub mod outlier;
pub mod pinning;
pub mod pool;
pub mod presence;
pub mod quota;
pub mod resolve;
pub mod retry;
pub mod route;
mod scatter;
mod serve;
pub mod service;
pub mod shadow;
pub mod show;
pub mod split;
pub mod standing;
pub mod status;
pub mod trial;
pub mod wire;

pub use serve::{Ends, Exit, run};
