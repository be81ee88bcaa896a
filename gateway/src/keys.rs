//! API keys: who calls, and what it may ask for.
//!
//! A file lists the keys by the fingerprints of their secrets, so that whoever reads it can call nobody. It is read
//! again when it changes. A secret is compared with all keys, in the same time whether it is one of them or none, and
//! goes no further than this module: not to services, not to workers, not into a log.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tls::secret::{Fingerprint, InvalidFingerprint};
use tls::{Reloaded, Source};
use tokio::{task, time as clock};
use tokio_util::sync::CancellationToken;

use crate::admit::Overloaded;
use crate::quota::{Allowance, Charge, Usage};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Characters of a key's name.
const NAME: usize = 64;

/// What a key allows its caller to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub enum Right {
    /// Vectors.
    #[serde(rename = "embed")]
    Embed,
    /// Scores.
    #[serde(rename = "rerank")]
    Rerank,
    /// Tokens and their count.
    #[serde(rename = "tokens")]
    Tokens,
    /// Which models there are.
    #[serde(rename = "models.read")]
    ModelsRead,
    /// To change what models are.
    #[serde(rename = "models.write")]
    ModelsWrite,
    /// Which workers there are.
    #[serde(rename = "cluster.read")]
    ClusterRead,
    /// To train.
    #[serde(rename = "train")]
    Train,
}

impl Right {
    /// As the file of keys has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Rerank => "rerank",
            Self::Tokens => "tokens",
            Self::ModelsRead => "models.read",
            Self::ModelsWrite => "models.write",
            Self::ClusterRead => "cluster.read",
            Self::Train => "train",
        }
    }
}

/// What a method asks of its callers, where there are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Open,
    /// A key, whatever it allows.
    Known,
    /// A key that allows this.
    Needs(Right),
}

/// Why a caller is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// It shows no key.
    #[error("an API key is wanted: authorization: Bearer KEY")]
    Missing,
    /// It shows something, in a form that no key has.
    #[error("the authorization header is not of the form: Bearer KEY")]
    Malformed,
    /// Nobody has this key.
    #[error("this API key is not known")]
    Unknown,
    /// It was good once.
    #[error("API key {key} has expired")]
    Expired {
        /// Its name.
        key: Arc<str>,
    },
    /// It is good for other things.
    #[error("API key {key} does not allow {}", right.name())]
    Denied {
        /// Its name.
        key: Arc<str>,
        /// What it lacks.
        right: Right,
    },
}

impl Unauthorized {
    /// The reason, as `ErrorInfo` has it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "KEY_MISSING",
            Self::Malformed => "KEY_MALFORMED",
            Self::Unknown => "KEY_UNKNOWN",
            Self::Expired { .. } => "KEY_EXPIRED",
            Self::Denied { .. } => "RIGHT_MISSING",
        }
    }

    /// The name of the key that was shown, where it has one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Missing | Self::Malformed | Self::Unknown => None,
            Self::Expired { key } | Self::Denied { key, .. } => Some(key),
        }
    }
}

/// The key that a call came with: in the extensions of its request, where the gateway has keys.
#[derive(Clone, Debug)]
pub struct CallerKey {
    /// Its name.
    pub name: Arc<str>,
    allowance: Allowance,
    usage: Arc<Usage>,
}

impl CallerKey {
    /// Charges a call of `tokens` to it, at one of so many gateways.
    ///
    /// # Errors
    /// Where that is more than it may use now.
    pub fn charge(&self, tokens: u64, gateways: usize) -> Result<Charge, Overloaded> {
        self.usage.charge(&self.name, self.allowance.shared(gateways), tokens)
    }
}

/// All keys, as the file has them now.
#[derive(Debug)]
pub struct Keys {
    file: Reloaded<KeyFile>,
    /// What each has used, by name: it outlives a change of the file.
    usage: Mutex<HashMap<Arc<str>, Arc<Usage>>>,
}

impl Keys {
    /// Reads `path`. Blocks.
    ///
    /// # Errors
    /// [`InvalidKeys`] names the key and what is wrong with it.
    pub fn load(path: PathBuf) -> Result<Self, InvalidKeys> {
        Ok(Self { file: Reloaded::load(KeyFile(path))?, usage: Mutex::default() })
    }

    /// Looks at the file again and again, until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let following = async {
            loop {
                clock::sleep(LOOK).await;
                let keys = Arc::clone(&self);
                // One that panicked has said so.
                let _ = task::spawn_blocking(move || keys.refresh()).await;
            }
        };
        stop.run_until_cancelled(following).await;
    }

    /// Looks at the file, and forgets what keys have used that are no more. Blocks.
    fn refresh(&self) {
        let now = self.file.refresh();
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.retain(|name, _| now.keys.iter().any(|key| key.name == *name));
    }

    /// Who calls with `headers`; `None` where nobody needs to say so.
    ///
    /// # Errors
    /// Where it may not.
    pub fn admit(&self, headers: &HeaderMap, access: Access) -> Result<Option<CallerKey>, Unauthorized> {
        let right = match access {
            Access::Open => return Ok(None),
            Access::Known => None,
            Access::Needs(right) => Some(right),
        };
        let now = self.file.value();
        let Key { name, allowance, .. } = now.admit(shown(headers)?, right, SystemTime::now())?;
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = Arc::clone(usage.entry(Arc::clone(name)).or_default());
        Ok(Some(CallerKey { name: Arc::clone(name), allowance: *allowance, usage }))
    }
}

/// The secret in `headers`.
fn shown(headers: &HeaderMap) -> Result<&[u8], Unauthorized> {
    let value = headers.get(AUTHORIZATION).ok_or(Unauthorized::Missing)?.as_bytes();
    let (scheme, secret) = value.split_at_checked("Bearer ".len()).ok_or(Unauthorized::Malformed)?;
    if !scheme.eq_ignore_ascii_case(b"Bearer ") || secret.is_empty() {
        return Err(Unauthorized::Malformed);
    }
    Ok(secret)
}

/// The keys of a file.
#[derive(Debug)]
pub struct KeySet {
    /// Fingerprints, in the order of `keys`.
    fingerprints: Vec<Fingerprint>,
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    name: Arc<str>,
    rights: BTreeSet<Right>,
    expires: Option<SystemTime>,
    allowance: Allowance,
}

impl KeySet {
    fn admit(&self, secret: &[u8], right: Option<Right>, now: SystemTime) -> Result<&Key, Unauthorized> {
        let found = Fingerprint::of(secret).find(&self.fingerprints).ok_or(Unauthorized::Unknown)?;
        let key = &self.keys[found];
        if key.expires.is_some_and(|expires| expires <= now) {
            return Err(Unauthorized::Expired { key: Arc::clone(&key.name) });
        }
        match right {
            Some(right) if !key.rights.contains(&right) => {
                Err(Unauthorized::Denied { key: Arc::clone(&key.name), right })
            }
            Some(_) | None => Ok(key),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let Written { key: written } = toml::from_str(text).map_err(|error| fault(text, &error))?;
        let mut names = BTreeMap::new();
        let mut set = Self { fingerprints: Vec::new(), keys: Vec::new() };
        for key in written {
            let name = key.id.clone();
            let (fingerprint, key) = key.check().map_err(|fault| format!("key {name:?}: {fault}"))?;
            if let Some(other) = names.insert(fingerprint, name.clone()) {
                return Err(format!("keys {other:?} and {name:?} have the same secret"));
            }
            if set.keys.iter().any(|other| other.name == key.name) {
                return Err(format!("there are two keys {name:?}"));
            }
            set.fingerprints.push(fingerprint);
            set.keys.push(key);
        }
        Ok(set)
    }
}

/// What is wrong and where. The line itself is not shown: somebody may have put the secret in it.
fn fault(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", 1 + before.matches('\n').count(), error.message())
}

/// A file of keys.
#[derive(Debug)]
pub struct KeyFile(PathBuf);

/// Why a file of keys is of no use.
#[derive(Debug, thiserror::Error)]
pub enum InvalidKeys {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unread {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not say what it should.
    #[error("{}: {why}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong, by the key's name.
        why: String,
    },
}

impl Source for KeyFile {
    type Value = KeySet;
    type Error = InvalidKeys;

    fn files(&self) -> Vec<&Path> {
        vec![&self.0]
    }

    fn read(&self) -> Result<KeySet, InvalidKeys> {
        let path = || self.0.clone();
        let text = std::fs::read_to_string(&self.0)
            .map_err(|source| InvalidKeys::Unread { path: path(), source })?;
        KeySet::parse(&text).map_err(|why| InvalidKeys::Malformed { path: path(), why })
    }
}

/// The file as it is written: `[[key]]` again and again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    key: Vec<WrittenKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey {
    id: String,
    sha256: String,
    rights: BTreeSet<Right>,
    expires: Option<toml::value::Datetime>,
    tokens_per_second: Option<NonZeroU32>,
    concurrent_tokens: Option<NonZeroU64>,
}

impl WrittenKey {
    fn check(self) -> Result<(Fingerprint, Key), String> {
        let Self { id, sha256, rights, expires, tokens_per_second, concurrent_tokens } = self;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if id.is_empty() || id.len() > NAME || !id.chars().all(plain) {
            return Err(format!("id: 1 to {NAME} letters, digits, dots, dashes and underscores are wanted"));
        }
        let fingerprint = sha256.parse().map_err(|fault: InvalidFingerprint| format!("sha256: {fault}"))?;
        let expires = expires.map(moment).transpose()?;
        let allowance = Allowance {
            tokens_per_second: tokens_per_second.map(|tokens| tokens.get().into()),
            concurrent_tokens: concurrent_tokens.map(NonZeroU64::get),
        };
        Ok((fingerprint, Key { name: id.into(), rights, expires, allowance }))
    }
}

fn moment(expires: toml::value::Datetime) -> Result<SystemTime, String> {
    let parsed = OffsetDateTime::parse(&expires.to_string(), &Rfc3339);
    parsed
        .map(SystemTime::from)
        .map_err(|_| "expires: a time such as 2027-01-31T00:00:00Z is wanted".to_owned())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn written(id: &str, secret: &str, more: &str) -> String {
        format!("[[key]]\nid = \"{id}\"\nsha256 = \"{}\"\n{more}\n", Fingerprint::of(secret.as_bytes()))
    }

    fn keys() -> KeySet {
        let text = [
            written("search", "bg_s", r#"rights = ["embed", "rerank"]"#),
            written(
                "ops",
                "bg_o",
                r#"rights = ["models.read", "models.write", "cluster.read", "train", "tokens"]"#,
            ),
            written("old", "bg_x", "rights = [\"embed\"]\nexpires = 2020-01-01T00:00:00+01:00"),
            written("new", "bg_n", "rights = [\"embed\"]\nexpires = 2999-01-01 00:00:00Z"),
            written("idle", "bg_i", "rights = []"),
        ];
        KeySet::parse(&text.concat()).unwrap()
    }

    #[test]
    fn a_key_allows_what_it_says() {
        #[track_caller]
        fn check(secret: &str, right: Option<Right>, expected: Result<&str, &str>) {
            let keys = keys();
            let admitted = keys.admit(secret.as_bytes(), right, SystemTime::now());
            let found = admitted.as_ref().map(|key| &*key.name).map_err(Unauthorized::reason);
            assert_eq!(found, expected);
        }
        check("bg_s", Some(Right::Embed), Ok("search"));
        check("bg_s", Some(Right::Rerank), Ok("search"));
        check("bg_s", Some(Right::ModelsWrite), Err("RIGHT_MISSING"));
        check("bg_o", Some(Right::Train), Ok("ops"));
        check("bg_o", Some(Right::Embed), Err("RIGHT_MISSING"));
        check("bg_x", Some(Right::Embed), Err("KEY_EXPIRED"));
        check("bg_n", Some(Right::Embed), Ok("new"));
        check("bg_i", None, Ok("idle"));
        check("bg_i", Some(Right::Tokens), Err("RIGHT_MISSING"));
        check("bg_", Some(Right::Embed), Err("KEY_UNKNOWN"));
        check("", None, Err("KEY_UNKNOWN"));
    }

    #[test]
    fn a_key_is_shown_as_a_bearer() {
        #[track_caller]
        fn check(header: Option<&str>, expected: Result<&str, &str>) {
            let header = header.map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
            let headers = header.into_iter().collect();
            let found = shown(&headers).map_err(|unauthorized| unauthorized.reason());
            assert_eq!(found, expected.map(str::as_bytes));
        }
        check(Some("Bearer bg_1"), Ok("bg_1"));
        check(Some("bearer bg_1"), Ok("bg_1"));
        check(None, Err("KEY_MISSING"));
        for wrong in ["", "Bearer", "Bearer ", "Basic dTpw", "bg_1", "Beärer 1"] {
            check(Some(wrong), Err("KEY_MALFORMED"));
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let fault = KeySet::parse(text).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        }
        let rights = "rights = []";
        check("[[key]]\nid = \"a\"", "sha256");
        check(&written("a b", "1", rights), "key \"a b\": id");
        check(&written("", "1", rights), "id");
        check(&written("a", "1", "rights = [\"fly\"]"), "fly");
        check(&written("a", "1", "rights = []\nright = 1"), "line 5: unknown field `right`");
        check(&written("a", "1", "rights = []\nexpires = 2027-01-01"), "key \"a\": expires");
        check(&written("a", "1", "rights = []\ntokens_per_second = 0"), "line 5");
        check("[[key]]\nid = \"a\"\nsha256 = \"bg_1\"\nrights = []", "key \"a\": sha256");
        check(&[written("a", "1", rights), written("b", "1", rights)].concat(), "the same secret");
        check(&[written("a", "1", rights), written("a", "2", rights)].concat(), "two keys \"a\"");
        let leaked = KeySet::parse(&written("a", "1", "secret = \"bg_1\"")).unwrap_err();
        assert!(!leaked.contains("bg_1"), "{leaked}");
        assert!(KeySet::parse("").unwrap().keys.is_empty(), "a file without keys lets nobody in");
    }

    #[test]
    fn every_right_is_written_as_it_is_named() {
        let all = [
            Right::Embed,
            Right::Rerank,
            Right::Tokens,
            Right::ModelsRead,
            Right::ModelsWrite,
            Right::ClusterRead,
            Right::Train,
        ];
        for right in all {
            let text = written("a", "1", &format!("rights = [{:?}]", right.name()));
            assert!(KeySet::parse(&text).unwrap().keys[0].rights.contains(&right));
        }
    }
}
