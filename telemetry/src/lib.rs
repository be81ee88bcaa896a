//! What every Beige process tells about itself, log lines, traces, metrics and health, and how it is told to end.
//!
//! It knows none of the other crates. A service calls [`start`] once, carries trace contexts over gRPC with
//! [`trace`], serves its admin port with [`admin::serve`], and waits for [`signals`].

pub mod admin;
mod logging;
pub mod signals;
pub mod trace;

pub use logging::{Format, Guard, Logging, StartError, start};
pub use prometheus_client as prometheus;
