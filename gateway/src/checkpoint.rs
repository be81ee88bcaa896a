//! What the gateway knows of a checkpoint: its name, and what it can do.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use proto::v1;

/// Hexadecimal digits of a SHA-256.
const HEX_DIGITS: usize = 64;

/// Names a checkpoint by its content: SHA-256 of its canonical manifest in hexadecimal. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Arc<str>);

impl Digest {
    /// The digest that a caller wrote; `None` unless it is 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        (text.len() == HEX_DIGITS && text.as_bytes().iter().all(hex)).then(|| Self(text.into()))
    }

    /// The digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// From the cluster's own word: aliases and health reports, whose writers have checked it.
impl From<&str> for Digest {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl Borrow<str> for Digest {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a checkpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Texts to vectors.
    Embedder,
    /// A query and a document to a score.
    CrossEncoder,
}

/// A checkpoint as the workers that hold it describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// What it does.
    pub kind: Kind,
    /// The description itself, `ready_workers` and `dtypes` unset.
    pub checkpoint: v1::Checkpoint,
}

impl Card {
    /// The card of a checkpoint in a health report; `None` where it is of a kind this release does not know.
    #[must_use]
    pub fn of(checkpoint: &v1::Checkpoint) -> Option<Self> {
        let kind = match v1::ModelKind::try_from(checkpoint.kind) {
            Ok(v1::ModelKind::Embedder) => Kind::Embedder,
            Ok(v1::ModelKind::CrossEncoder) => Kind::CrossEncoder,
            Ok(v1::ModelKind::Unspecified) | Err(_) => return None,
        };
        let checkpoint = v1::Checkpoint { dtypes: Vec::new(), ready_workers: 0, ..checkpoint.clone() };
        Some(Self { kind, checkpoint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_lower_case_hexadecimal_digits() {
        let digest = "0123456789abcdef".repeat(4);
        assert_eq!(Digest::parse(&digest).unwrap().as_str(), digest);
        for wrong in
            ["", &digest[1..], &digest.to_uppercase(), &digest.replace('0', "g"), &format!("{digest}0")]
        {
            assert_eq!(Digest::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_kind_of_a_later_release_has_no_card() {
        let of = |kind| Card::of(&v1::Checkpoint { kind, ..v1::Checkpoint::default() }).map(|card| card.kind);
        assert_eq!(of(1), Some(Kind::Embedder));
        assert_eq!(of(2), Some(Kind::CrossEncoder));
        assert_eq!(of(0), None);
        assert_eq!(of(77), None);
    }
}
