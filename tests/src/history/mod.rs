//! What callers saw while a cluster changed under them, written down answer by answer, and what must hold of it.
//!
//! [`Callers`] write, [`flaws`] reads: it knows nothing but the [`Record`], so that a record can be kept, read back
//! and judged again. All times are microseconds since the record began, on the clock of the one process that keeps it.

mod ask;
mod book;
mod callers;
mod check;
mod record;

pub use book::Book;
pub use callers::{Callers, Load, Notebook};
pub use check::{Flaw, flaws};
pub use record::{Answer, Call, Digest, Entry, Failure, Left, Note, Record, Summary};
