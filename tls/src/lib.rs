//! Who is let in, and how the two ends of a connection know each other.
//!
//! A server's [`Door`] takes connections, over TLS where there are certificates for it; a client's [`Dialer`] makes
//! them. Both read their certificates again when the [files change](Reloaded): the connection after the change uses
//! the new ones, and those that are open stay. [`secret`] makes and compares the secrets of API keys.
//!
//! It knows no service, and decides nothing about what a caller may do.

mod client;
mod distrust;
mod door;
mod files;
mod refusal;
mod reload;
pub mod secret;
mod server;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;

pub use client::{Client, ClientFiles, Dialer, InvalidHost};
pub use distrust::Distrust;
pub use door::Door;
pub use files::{Incomplete, Unusable, What};
pub use refusal::{Reason, Refusals};
pub use reload::{Reloaded, Source};
pub use server::{Server, ServerFiles};
pub use stream::Stream;
