//! A load generator for Beige.
//!
//! Closed loop: so many callers, each with one call open at a time; it shows what the cluster can carry.
//! Open loop: calls fall due by a schedule that does not care how the cluster fares, and each latency is
//! taken from the moment the call was *due*; it shows what users would see.
//!
//! The generator shares its machine with what it measures, so it is one task on the caller's thread, and
//! vectors stay the bytes that they arrive as. It prints nothing: a [`Report`] comes back.

mod arrivals;
mod call;
mod corpus;
mod drive;
mod plan;
mod report;
mod tally;

pub use arrivals::{Arrivals, Schedule};
pub use corpus::{Corpus, CorpusError};
pub use drive::{BenchError, run};
pub use plan::{Call, Pacing, Plan};
pub use report::{Latencies, Report};
pub use tally::code_name;
