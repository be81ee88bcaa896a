//! What every Beige process tells about itself: log lines, traces, metrics and health.
//!
//! It knows none of the other crates. A service calls [`start`] once, carries trace contexts over gRPC with
//! [`trace`], and serves its admin port with [`admin::serve`].

pub mod admin;
mod logging;
pub mod trace;

pub use logging::{Format, Guard, Logging, StartError, start};
pub use prometheus_client as prometheus;
