//! `config.json`: what the architecture is, in numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::dropout::Dropout;
use crate::error::LoadError;

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Texts to vectors.
    Embedder,
    /// A query and a document to a logit.
    CrossEncoder,
}

/// Bodies that differ in the names of their tensors and in where positions start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Devlin et al. 2018, arXiv:1810.04805: bge v1 and v1.5, MiniLM.
    Bert,
    /// Conneau et al. 2019, arXiv:1911.02116: bge-m3, bge-reranker-base, -large and -v2-m3.
    XlmRoberta,
}

/// The facts of `config.json` that an encoder is built from.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) architecture: String,
    pub(crate) family: Family,
    pub(crate) kind: Kind,
    pub(crate) hidden: i64,
    pub(crate) layers: i64,
    pub(crate) heads: i64,
    pub(crate) intermediate: i64,
    pub(crate) vocabulary: i64,
    pub(crate) segments: i64,
    pub(crate) positions: i64,
    /// Position of a sequence's first token: 0 for BERT, one past the padding id for RoBERTa.
    pub(crate) first_position: i64,
    pub(crate) layer_norm_epsilon: f64,
    pub(crate) activation: HiddenActivation,
    /// What it was trained with.
    pub(crate) dropout: Dropout,
}

/// The feed-forward layer's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HiddenActivation {
    /// The exact one.
    Gelu,
    Relu,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: String,
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    vocab_size: i64,
    max_position_embeddings: i64,
    type_vocab_size: i64,
    layer_norm_eps: f64,
    hidden_act: HiddenActivation,
    #[serde(default = "usual_dropout")]
    hidden_dropout_prob: f64,
    #[serde(default = "usual_dropout")]
    attention_probs_dropout_prob: f64,
    /// As `hidden_dropout_prob` where it is null.
    classifier_dropout: Option<f64>,
    pad_token_id: Option<i64>,
    position_embedding_type: Option<String>,
    id2label: Option<BTreeMap<String, String>>,
}

impl Config {
    /// Reads `config.json`.
    pub(crate) fn load(path: &Path) -> Result<Self, LoadError> {
        let file: ConfigFile = read_json(path)?;
        let [architecture] = file.architectures.as_slice() else {
            return Err(LoadError::unsupported(path, "architectures names not exactly one architecture"));
        };
        let (family, kind) = classify(architecture, &file.model_type).ok_or_else(|| {
            let what = format!("architecture {architecture} (model type {}) is not known", file.model_type);
            LoadError::unsupported(path, what)
        })?;
        file.check(path, kind)?;
        Ok(Self {
            architecture: architecture.clone(),
            family,
            kind,
            hidden: file.hidden_size,
            layers: file.num_hidden_layers,
            heads: file.num_attention_heads,
            intermediate: file.intermediate_size,
            vocabulary: file.vocab_size,
            segments: file.type_vocab_size,
            positions: file.max_position_embeddings,
            first_position: match family {
                Family::Bert => 0,
                Family::XlmRoberta => file.pad_token_id.unwrap_or(1) + 1,
            },
            layer_norm_epsilon: file.layer_norm_eps,
            activation: file.hidden_act,
            dropout: Dropout {
                hidden: file.hidden_dropout_prob,
                attention: file.attention_probs_dropout_prob,
                classifier: file.classifier_dropout.unwrap_or(file.hidden_dropout_prob),
                adapters: 0.0,
            },
        })
    }

    /// Tokens for which there are positions.
    pub(crate) fn window(&self) -> usize {
        usize::try_from(self.positions - self.first_position).unwrap_or(0)
    }
}

impl ConfigFile {
    /// What no single field shows.
    fn check(&self, path: &Path, kind: Kind) -> Result<(), LoadError> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ];
        if let Some((field, value)) = sizes.into_iter().find(|(_, value)| *value < 1) {
            return Err(LoadError::format(path, format!("{field} is {value}")));
        }
        let shares = [
            ("hidden_dropout_prob", Some(self.hidden_dropout_prob)),
            ("attention_probs_dropout_prob", Some(self.attention_probs_dropout_prob)),
            ("classifier_dropout", self.classifier_dropout),
        ];
        let odd = |share: Option<f64>| share.is_some_and(|share| !(0.0..1.0).contains(&share));
        if let Some((field, value)) = shares.into_iter().find(|(_, value)| odd(*value)) {
            return Err(LoadError::format(path, format!("{field} is {}", value.unwrap_or_default())));
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
            return Err(LoadError::format(
                path,
                format!("hidden_size {hidden} is not a multiple of {heads} heads"),
            ));
        }
        if let Some(other) = self.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(LoadError::unsupported(
                path,
                format!("position_embedding_type {other} is not known"),
            ));
        }
        // transformers writes `id2label` unless there are two labels, its default.
        let labels = self.id2label.as_ref().map_or(2, BTreeMap::len);
        if kind == Kind::CrossEncoder && labels != 1 {
            let what = format!("a classifier of {labels} labels is no reranker: one label is wanted");
            return Err(LoadError::unsupported(path, what));
        }
        Ok(())
    }
}

/// What `transformers` takes where the file says nothing.
fn usual_dropout() -> f64 {
    0.1
}

fn classify(architecture: &str, model_type: &str) -> Option<(Family, Kind)> {
    Some(match (architecture, model_type) {
        ("BertModel" | "BertForMaskedLM", "bert") => (Family::Bert, Kind::Embedder),
        ("BertForSequenceClassification", "bert") => (Family::Bert, Kind::CrossEncoder),
        ("XLMRobertaModel" | "XLMRobertaForMaskedLM", "xlm-roberta")
        | ("RobertaModel" | "RobertaForMaskedLM", "roberta") => (Family::XlmRoberta, Kind::Embedder),
        ("XLMRobertaForSequenceClassification", "xlm-roberta")
        | ("RobertaForSequenceClassification", "roberta") => (Family::XlmRoberta, Kind::CrossEncoder),
        _ => return None,
    })
}

/// Reads a JSON file that must be there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let text = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|error| LoadError::format(path, error))
}

/// Reads a JSON file that may be absent.
pub(crate) fn read_json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    match read_json(path) {
        Err(LoadError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
