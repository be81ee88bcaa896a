//! From files of examples to batches of tokens.
//!
//! The data format is `FlagEmbedding`'s. With [`Custom::FlagEmbedding`] every choice is the reference's, down to the
//! random numbers, so that a recorded run can be rebuilt from its data files.

pub mod by_file;
mod collate;
mod corpus;
mod draw;
mod jsonl;
mod numpy;
mod order;
mod python;
mod stream;

pub use collate::Collator;
pub use corpus::{Corpus, Part, files};
pub use draw::{Custom, Drawing, Group, Reader, Taught, Unfit, Wording};
pub use jsonl::{Columns, Example, JsonLines};
pub use numpy::Generator;
pub use order::{BySet, Mixed, Rest, Round, Set};
pub use python::Random;
pub use stream::{Micro, Order, Position, Reading, Stream};
