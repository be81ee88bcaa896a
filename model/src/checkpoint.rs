//! A checkpoint in the Hugging Face layout: opened, understood, and named by its digest.

use std::path::{Path, PathBuf};

use manifest::{Manifest, ManifestFile, fingerprint};

use crate::config::{Config, Kind};
use crate::error::LoadError;
use crate::modules::{Modules, Pooling};
use crate::tokenizer::{self, Tokenizer, TokenizerSpec};
use crate::weights;

/// What an operator says in place of the checkpoint's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// How vectors are pooled; needed where there is no `modules.json`.
    pub pooling: Option<Pooling>,
    /// Longest input in tokens, at most the positions that the model has.
    pub max_tokens: Option<usize>,
}

/// What a checkpoint is, for those who call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// What it does.
    pub kind: Kind,
    /// The name in `config.json`, such as `BertModel`.
    pub architecture: String,
    /// Numbers per vector; 0 for a cross-encoder.
    pub dimensions: usize,
    /// Longest input in tokens, special tokens included.
    pub max_tokens: usize,
    /// How vectors are pooled; `None` for a cross-encoder.
    pub pooling: Option<Pooling>,
    /// Whether vectors are normalised unless the caller says otherwise.
    pub normalize: bool,
    /// What goes in front of a query.
    pub query_prompt: Option<String>,
    /// What goes in front of a document.
    pub document_prompt: Option<String>,
}

/// A directory whose every file has been read and hashed.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Config,
    card: Card,
    lowercase: bool,
    manifest: Manifest,
    digest: String,
    /// Paths of the tokenizer's files in the manifest.
    tokenizer_files: Vec<PathBuf>,
}

/// What `dir` says of itself, its weights aside.
struct Reading {
    config: Config,
    card: Card,
    lowercase: bool,
    /// All files that determine its answers, relative to it.
    files: Vec<PathBuf>,
    tokenizer_files: Vec<PathBuf>,
}

impl Checkpoint {
    /// Reads and hashes the files below `dir`. Blocks for as long as reading them takes.
    ///
    /// # Errors
    /// The first thing that keeps it from being served, as far as the configuration shows it; tensors are looked
    /// at when the model is loaded.
    pub fn open(dir: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        let reading = Reading::of(dir, overrides)?;
        let hashed = manifest::hash(dir, reading.files.clone());
        let hashed = hashed.map_err(|(path, source)| LoadError::Read { path, source })?;
        Ok(reading.checkpoint(dir, hashed))
    }

    /// As [`open`](Self::open), of files that have been held against `hashes` already: no weights are read.
    ///
    /// # Errors
    /// As [`open`](Self::open); also where a file that is needed is not among `hashes`.
    pub fn open_verified(
        dir: &Path,
        overrides: &Overrides,
        hashes: &[ManifestFile],
    ) -> Result<Self, LoadError> {
        let mut reading = Reading::of(dir, overrides)?;
        reading.files.sort();
        reading.files.dedup();
        let hash = |file: &PathBuf| {
            let found = hashes.iter().find(|hashed| Path::new(&hashed.path) == file);
            let unknown = || LoadError::format(&dir.join(file), "it is not among the checkpoint's files");
            found.cloned().ok_or_else(unknown)
        };
        let mut files = reading.files.iter().map(hash).collect::<Result<Vec<_>, _>>()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(reading.checkpoint(dir, files))
    }

    /// SHA-256 of the canonical manifest, 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The index space of its vectors: its own, since nothing yet says that another checkpoint's compare.
    #[must_use]
    pub fn index_space(&self) -> &str {
        &self.digest
    }

    /// All that determines its answers.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 over the files of its tokenizer: checkpoints in which it is equal read texts alike, as far as that is
    /// the tokenizer's.
    #[must_use]
    pub fn tokenizer_sha256(&self) -> String {
        let is_part =
            |file: &&ManifestFile| self.tokenizer_files.iter().any(|part| part == Path::new(&file.path));
        fingerprint(self.manifest.files.iter().filter(is_part))
    }

    /// What it is.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// [`LoadError::Format`] for a file that cannot be read as one, or that has more tokens than the model.
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        let spec = TokenizerSpec {
            max_tokens: self.card.max_tokens,
            vocabulary: usize::try_from(self.config.vocabulary).unwrap_or(0),
            lowercase: self.lowercase,
        };
        Tokenizer::load(&self.dir, &spec)
    }

    pub(crate) fn tokenizer_files(&self) -> &[PathBuf] {
        &self.tokenizer_files
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}

impl Reading {
    fn of(dir: &Path, overrides: &Overrides) -> Result<Self, LoadError> {
        let config = Config::load(&dir.join("config.json"))?;
        let modules = Modules::load(dir)?;
        let card = card(dir, &config, &modules, overrides)?;
        let tokenizer_files = tokenizer::files(dir)?;
        let mut files = modules.files;
        files.push("config.json".into());
        files.extend(tokenizer_files.iter().cloned());
        files.extend(weights::files(dir)?);
        Ok(Self { config, card, lowercase: modules.lowercase, files, tokenizer_files })
    }

    /// The checkpoint, of files in order.
    fn checkpoint(self, dir: &Path, files: Vec<ManifestFile>) -> Checkpoint {
        let Self { config, card, lowercase, files: _, tokenizer_files } = self;
        let pooling = card.pooling.map(|pooling| pooling.to_string());
        let manifest = Manifest::new(files, card.dimensions, card.max_tokens, pooling, card.normalize);
        let digest = manifest.digest();
        Checkpoint { dir: dir.to_owned(), config, card, lowercase, manifest, digest, tokenizer_files }
    }
}

fn card(dir: &Path, config: &Config, modules: &Modules, overrides: &Overrides) -> Result<Card, LoadError> {
    let embeds = config.kind == Kind::Embedder;
    let pooling = overrides.pooling.or(modules.pooling).filter(|_| embeds);
    if embeds && pooling.is_none() {
        let what = "modules.json does not say how vectors are pooled; say pooling=cls, mean or last";
        return Err(LoadError::unsupported(dir, what));
    }
    // Where pooling is given by hand, as for FlagEmbedding's own checkpoints, so is its custom to normalise.
    let normalize = embeds && (modules.normalize || modules.pooling.is_none());
    Ok(Card {
        kind: config.kind,
        architecture: config.architecture.clone(),
        dimensions: if embeds { usize::try_from(config.hidden).unwrap_or(0) } else { 0 },
        max_tokens: max_tokens(dir, config, modules, overrides)?,
        pooling,
        normalize,
        query_prompt: modules.query_prompt.clone(),
        document_prompt: modules.document_prompt.clone(),
    })
}

fn max_tokens(
    dir: &Path,
    config: &Config,
    modules: &Modules,
    overrides: &Overrides,
) -> Result<usize, LoadError> {
    let window = config.window();
    match overrides.max_tokens {
        Some(asked) if asked > window => {
            Err(LoadError::unsupported(dir, format!("max_tokens={asked}, the model has {window} positions")))
        }
        Some(asked) => Ok(asked),
        None => {
            let limits = [modules.max_tokens, tokenizer::window(dir)?];
            Ok(limits.into_iter().flatten().chain([window]).min().unwrap_or(window))
        }
    }
}
