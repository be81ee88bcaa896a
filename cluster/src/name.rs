//! Names that may stand in a key: clusters, models, digests, workers, gateways.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that is safe as one segment of an etcd key, and in a log line.
///
/// From 1 to [`Name::MAX_BYTES`] ASCII letters, digits and `.`, `_`, `-`, `:`. There is no `/`, which separates
/// segments, and no `@`, which separates a model from a digest in a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 200;

    /// Checks `text`.
    ///
    /// # Errors
    /// [`InvalidName`] says what is wrong with it.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidName> {
        let name = text.into();
        if name.is_empty() {
            return Err(InvalidName::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(InvalidName::TooLong { bytes: name.len() });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        match name.chars().find(|&c| !allowed(c)) {
            Some(character) => Err(InvalidName::Character { name, character }),
            None => Ok(Self(name)),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// It is empty.
    #[error("a name must not be empty")]
    Empty,
    /// It is longer than [`Name::MAX_BYTES`].
    #[error("a name has at most {max} bytes, not {bytes}", max = Name::MAX_BYTES)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It holds something else than ASCII letters, digits and `.`, `_`, `-`, `:`.
    #[error("the name {name:?} must not contain {character:?}, only ASCII letters, digits and . _ - :")]
    Character {
        /// The text.
        name: String,
        /// The first character at fault.
        character: char,
    },
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A [`Name`] that is not to be taken for another kind's.
macro_rules! identifier {
    ($(#[$doc:meta])* $id:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $id(Name);

        impl $id {
            /// Checks `text`.
            ///
            /// # Errors
            /// [`InvalidName`] where it is not a [`Name`].
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidName> {
                Name::parse(text).map(Self)
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl From<Name> for $id {
            fn from(name: Name) -> Self {
                Self(name)
            }
        }

        impl FromStr for $id {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl AsRef<str> for $id {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl Borrow<str> for $id {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }
    };
}

identifier! {
    /// Which worker: unique in its cluster, and the same again after a restart where the deployment can keep it so.
    ///
    /// Two processes of one id at the same time overwrite each other's registration; both log it.
    WorkerId
}

identifier! {
    /// Which gateway: one process of it, so that what is known of a process never passes to its successor. Chosen at
    /// random at its start.
    GatewayId
}

identifier! {
    /// Which trainer: unique in its cluster, and the same again after a restart where the deployment can keep it so.
    TrainerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(text: &str, expected: &InvalidName) {
        assert_eq!(Name::parse(text).as_ref(), Err(expected));
        assert_eq!(WorkerId::parse(text).as_ref(), Err(expected));
    }

    #[test]
    fn a_name_is_letters_digits_and_a_few_signs() {
        for text in ["a", "bge-base-en-v1.5", "host:8443", "_", "0", &"x".repeat(Name::MAX_BYTES)] {
            assert_eq!(Name::parse(text).unwrap().as_str(), text);
            assert_eq!(text.parse::<WorkerId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_could_break_a_key_or_a_log_line_is_no_name() {
        refuses("", &InvalidName::Empty);
        refuses(&"x".repeat(Name::MAX_BYTES + 1), &InvalidName::TooLong { bytes: Name::MAX_BYTES + 1 });
        for character in ['/', '@', ' ', '\n', '\0', '%', 'é', '模'] {
            let name = format!("a{character}b");
            refuses(&name, &InvalidName::Character { name: name.clone(), character });
        }
    }
}
