//! Swaps: how a model's name comes to mean another checkpoint while it is being used.
//!
//! ```text
//!                    leader: nothing older    leader: enough         leader: the trial
//!                    is left to be let go     workers are ready      speaks for it
//!  promote ─▶ requested ────────▶ preparing ─────┬──────▶ trial ──────────┬───▶ committed ──▶ retired
//!                 │                   │          └────────────────────────┘      │   leader: no call can
//!                 │ deadline, by hand │ deadline, refusals, by hand   │          │   be left on the old one
//!                 ▼                   ▼                               ▼          ▼
//!               aborted            aborted                       rolled back   rolled back, by hand
//! ```
//!
//! Everything here is pure: a [view](crate::View) in, [steps](Step) out. A step is what is to be written and the facts
//! that it rests on; it becomes one transaction that compares all of them, so that whoever decided on what is over by
//! now changes nothing and looks again. The leader decides level-triggered: each look at a view starts from nothing
//! but the view, what the leader [remembers](Memory), and the time.
//!
//! What holds, whatever crashes, lags or is cut off (the simulator holds the code to it):
//!
//! * A name moves only in a transaction that finds enough workers ready.
//! * A checkpoint that answered somebody is let go only when no gateway can have a call on it that the name led there:
//!   all have taken in the epoch and have none left, none has come since, and those that vanished did so longer ago
//!   than any call lasts.
//! * The epoch of a name rises by one with every change of who is answered by what.
//! * Every step of a leader compares that it still leads.

mod alias;
mod decide;
mod election;
mod helm;
mod lately;
mod memory;
mod moves;
mod prepare;
mod release;
mod request;
mod room;
mod step;
mod trial;

pub use release::SwapSettings;
pub use request::Refused;

pub(crate) use election::Campaign;
pub(crate) use helm::{Helm, Order, Task, campaign};
pub(crate) use memory::Moment;
pub(crate) use request::{Asked, Asking, Kinship, request, retire, roll_back};
pub(crate) use step::{Fence, Standing, Step};
