//! The service as gateways meet it: over a real port, with threads, queue and scheduler as in production. Only the
//! tokenizer and the device are the tests' own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod a_broken_device_ends_the_worker;
mod a_caller_s_trace_reaches_the_batch;
mod a_full_worker_says_when_to_come_back;
mod a_poisonous_input_fails_alone;
mod a_worker_that_leaves_finishes_its_calls;
mod answers_are_in_order_and_in_form;
mod bad_requests_name_the_field;
mod batches_are_formed_as_late_as_the_device_allows;
mod checkpoints_come_and_go_between_batches;
mod dead_work_is_never_run;
mod health_is_told_at_once;
mod interactive_calls_overtake_bulk;
mod memory_that_runs_out_makes_batches_smaller;
mod support;
