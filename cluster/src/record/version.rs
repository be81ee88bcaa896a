//! A checkpoint that was published: what it is, and what is known of it.

use std::collections::BTreeMap;

use manifest::Manifest;
use serde::{Deserialize, Serialize};

use super::Golden;

/// A checkpoint of a model. Its key names it by the digest of its [manifest](Self::manifest); the rest is what was
/// learnt of it, and two publications of one digest agree on nothing but the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// What it is made of.
    pub manifest: Manifest,
    /// Whether the store has its files; without them only a worker that was started with its directory can serve it.
    pub stored: bool,
    /// What it does.
    pub kind: ModelKind,
    /// The architecture's name in its configuration, such as `BertModel`.
    pub architecture: String,
    /// Vectors may be compared exactly when their index spaces are equal.
    pub index_space: String,
    /// SHA-256 over the files of its tokenizer.
    pub tokenizer_sha256: String,
    /// The checkpoint it was made of, by digest.
    #[serde(default)]
    pub parent: Option<String>,
    /// What its makers measured, such as `ndcg_at_10`.
    #[serde(default)]
    pub evaluation: BTreeMap<String, f64>,
    /// What every worker must meet before it is ready.
    #[serde(default)]
    pub golden: Option<Golden>,
    /// The fine-tuning job that made it.
    #[serde(default)]
    pub job: Option<String>,
    /// When it was published.
    pub created_unix_ms: u64,
}

/// What a checkpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Texts to vectors.
    Embedder,
    /// A query and a document to a score.
    CrossEncoder,
}

#[cfg(test)]
mod tests {
    use manifest::ManifestFile;

    use super::*;
    use crate::record::{GoldenSource, decode, encode};

    #[test]
    fn a_version_read_back_is_the_version_written() {
        let file = ManifestFile { path: "config.json".into(), sha256: "0".repeat(64), size: 7 };
        let version = Version {
            manifest: Manifest::new(vec![file], 2, 512, Some("cls".into()), true),
            stored: true,
            kind: ModelKind::Embedder,
            architecture: "BertModel".into(),
            index_space: "space".into(),
            tokenizer_sha256: "1".repeat(64),
            parent: None,
            evaluation: BTreeMap::from([("ndcg_at_10".to_owned(), 0.71)]),
            golden: Some(Golden::new(vec!["a text".into()], &[0.6, -0.8], GoldenSource::Publisher)),
            job: None,
            created_unix_ms: 1,
        };
        let read: Version = decode(&encode(&version)).unwrap();
        assert_eq!((read.manifest.digest(), &read), (version.manifest.digest(), &version));
    }
}
