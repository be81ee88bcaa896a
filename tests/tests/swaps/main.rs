//! Swaps on real processes under load: nobody notices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checkpoints_are_told_apart;
