//! What a store and a cache do, over real files and real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod a_checkpoint_goes_in_and_comes_out;
mod support;
