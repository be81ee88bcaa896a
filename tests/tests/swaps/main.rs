//! Swaps on real processes under load: nobody notices.
//!
//! Every scenario ends by judging the record of what callers saw; see `tests::history`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod a_cross_encoder_is_swapped;
mod a_part_of_the_callers_goes_first;
mod a_swap_is_watched;
mod a_way_back;
mod checkpoints_are_told_apart;
mod etcd_fails;
mod gateways_fail;
mod golden_vectors_come_from_who_publishes;
mod many_in_a_row;
mod memory_is_short;
mod support;
mod the_store_fails;
mod workers_come_and_go;

#[path = "../../../cli/tests/verbs/terminal.rs"]
mod terminal;
