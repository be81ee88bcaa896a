//! What a store and a cache do, over real files and real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod a_cache_keeps_what_is_used;
mod a_checkpoint_goes_in_and_comes_out;
mod a_download_goes_on;
mod a_full_disk_is_named;
mod objects_are_copied;
mod over_s3;
#[cfg(feature = "servers")]
mod over_servers;
#[path = "../support/s3.rs"]
#[allow(unreachable_pub, missing_docs, reason = "others use it too")]
mod s3;
mod support;
