//! The gateway between real sockets: one file for each behaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod a_call_that_is_given_up_holds_nothing;
mod a_checkpoint_is_published;
mod a_client_never_sees_an_older_epoch;
mod a_dying_worker_fails_no_call;
mod a_late_small_call_is_asked_for_twice;
mod a_missing_checkpoint_is_retried_unseen;
mod a_name_is_moved_and_moved_back;
mod a_part_of_the_callers_try_a_checkpoint;
mod a_retired_checkpoint_is_left_unseen;
mod a_sick_worker_is_left_out;
mod a_stale_view_keeps_serving;
mod a_trial_decides_a_swap;
mod answers_say_what_made_them;
mod bad_input_is_named;
mod calls_are_copied_for_comparison;
mod deadlines_are_kept;
mod ending_fails_no_call;
mod gateways_share_a_swap;
mod golden_vectors_come_from_who_publishes;
mod keys_have_quotas;
mod limits_are_held;
mod names_are_learnt_from_workers;
mod only_known_keys_are_let_in;
mod order_is_kept_over_workers;
mod overload_is_told_early;
mod streams_are_ordered_and_pinned;
mod the_cluster_can_be_asked_about;
mod the_cluster_is_told_what_calls_need;
mod tls_is_spoken_to_callers_and_workers;
mod traces_reach_the_worker;
mod versions_are_kept_and_collected;
