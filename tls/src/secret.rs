//! The secrets of API keys: how they are made, what is kept of them, and how they are compared.
//!
//! A secret is `bg_` and 64 hexadecimal digits: 256 random bits. No one guesses that, so a plain SHA-256 is enough to
//! keep; what slow hashes are for, passwords that people choose, does not occur.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

/// How every secret begins, so that one that is found where it should not be is known for what it is.
const PREFIX: &str = "bg_";
/// Random bytes of a secret, and bytes of its fingerprint.
const BYTES: usize = 32;

/// A new secret.
#[must_use]
pub fn generate() -> String {
    format!("{PREFIX}{}", Hex(&rand::random::<[u8; BYTES]>()))
}

/// SHA-256 of a secret: what is kept where secrets are checked. Shown as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; BYTES]);

impl Fingerprint {
    /// The fingerprint of `secret`.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Which of `known` this is. Takes the same time whichever it is, and where it is none.
    #[must_use]
    pub fn find<'a>(self, known: impl IntoIterator<Item = &'a Self>) -> Option<usize> {
        let none = u64::MAX;
        let mut found = none;
        for (i, fingerprint) in (0..none).zip(known) {
            found.conditional_assign(&i, fingerprint.0.ct_eq(&self.0));
        }
        usize::try_from(found).ok().filter(|_| found != none)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

/// A text that is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("64 lower-case hexadecimal digits are wanted, as sha256sum prints them")]
pub struct InvalidFingerprint;

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(InvalidFingerprint),
        };
        let mut bytes = [0; BYTES];
        if text.len() != 2 * BYTES {
            return Err(InvalidFingerprint);
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_have_a_form() {
        let (one, other) = (generate(), generate());
        assert_ne!(one, other);
        let digits = one.strip_prefix(PREFIX).unwrap();
        assert_eq!(digits.len(), 64);
        assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digits}");
    }

    #[test]
    fn a_fingerprint_is_what_sha256sum_prints() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Fingerprint::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse(), Ok(Fingerprint::of(b"abc")));
        for wrong in ["", &abc[1..], &abc.to_uppercase(), &abc.replace('b', "g"), &abc.replace("ba", "é")] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(InvalidFingerprint), "{wrong}");
        }
    }

    #[test]
    fn one_of_many_is_found() {
        let known: Vec<_> = ["a", "b", "c"].map(|secret| Fingerprint::of(secret.as_bytes())).into();
        assert_eq!(Fingerprint::of(b"a").find(&known), Some(0));
        assert_eq!(Fingerprint::of(b"c").find(&known), Some(2));
        assert_eq!(Fingerprint::of(b"d").find(&known), None);
        assert_eq!(Fingerprint::of(b"a").find(&[]), None);
    }
}
