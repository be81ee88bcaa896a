//! Workers that come to hold other checkpoints while they serve: real processes, a real etcd, a store in a directory,
//! and small checkpoints. Whoever leads the cluster is the library that gateways use; there is no gateway.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    dead_code,
    reason = "a test's own code: it fails by panicking, and shows why; files shared with other crates have more than is used"
)]

mod a_checkpoint_is_swapped_in_under_load;
mod a_checkpoint_is_tried_before_anybody_can_see_it;
mod a_worker_brings_nothing_along;
mod an_etcd_that_was_restored_is_told_again;
mod twins_share_a_checkpoint;
mod what_cannot_be_served_is_refused_by_its_reason;

mod support;

use support::floats;

#[path = "../../../cluster/tests/support/etcd.rs"]
mod etcd;
#[path = "../../../tests/src/variants.rs"]
#[allow(unreachable_pub, reason = "it is public where it comes from")]
mod variants;

/// A checkpoint that the repository carries.
fn checkpoint(name: &str) -> String {
    format!("{}/../tests/golden/checkpoints/{name}", env!("CARGO_MANIFEST_DIR"))
}
