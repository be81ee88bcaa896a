//! Whole runs of ranks, in processes of their own.

#![allow(clippy::unwrap_used, reason = "a test")]

mod anew;
mod evaluated;
mod golden;
mod refused;
mod resumed;
mod sentence_transformers;
mod support;
mod trained;
