//! Fine-tuning on real processes: an etcd, a gateway, workers, trainers and their ranks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod a_job_becomes_a_version;
mod bad_jobs;
mod cancelled;
mod data_from_a_bucket;
mod disturbed;
mod removed;
mod support;
mod watched;
