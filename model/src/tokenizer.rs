//! Texts to token ids, as the checkpoint's own tokenizer has it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use thiserror::Error;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Encoding, PostProcessor as _, TruncationDirection};

use crate::config::{Config, read_json_if_there};
use crate::error::LoadError;
use crate::modules::Modules;
use crate::sequence::Sequence;

const FAST: &str = "tokenizer.json";
const VOCABULARY: &str = "vocab.txt";
const SETTINGS: &str = "tokenizer_config.json";

/// What happens to a text that is longer than the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// It is refused.
    None,
    /// Tokens are dropped from its end.
    End,
    /// Tokens are dropped from its start.
    Start,
}

/// What becomes of the special tokens around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are there, as the model reads them.
    Keep,
    /// Only the text's own tokens.
    Omit,
}

/// One token of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its number in the vocabulary.
    pub id: u32,
    /// How the vocabulary spells it.
    pub text: String,
    /// Whether it stands for no text.
    pub special: bool,
    /// Where it starts in the text, in bytes.
    pub start: usize,
    /// Where it ends, exclusive.
    pub end: usize,
}

/// Why a text has no tokens.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenizeError {
    /// Shorten it, or allow truncation.
    #[error("{tokens} tokens, the model's window has {max}")]
    TooLong {
        /// With special tokens.
        tokens: usize,
        /// The window.
        max: usize,
    },
    /// The tokenizer cannot read this text.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

/// A checkpoint's tokenizer. Cheap to clone, shared between threads.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tokenizer: tokenizers::Tokenizer,
    max_tokens: usize,
    lowercase: bool,
    /// Special tokens around one text, and around a pair.
    added: (usize, usize),
    /// Ids of the tokens that stand for no text.
    markers: Vec<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    model_max_length: Option<f64>,
    cls_token: Option<Spelling>,
    eos_token: Option<Spelling>,
    sep_token: Option<Spelling>,
    pad_token: Option<Spelling>,
    unk_token: Option<Spelling>,
}

/// A special token in a tokenizer's settings: its text, or an object around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Spelling {
    Plain(String),
    Token { content: String },
}

impl Spelling {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Token { content: text } => text,
        }
    }
}

/// The files of `dir` that make up its tokenizer, relative to it.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let main = [FAST, VOCABULARY].into_iter().find(|name| dir.join(name).exists());
    let Some(main) = main else {
        return Err(LoadError::unsupported(
            dir,
            format!("there is no tokenizer: neither {FAST} nor {VOCABULARY}"),
        ));
    };
    let settings = Some(SETTINGS).filter(|name| dir.join(name).exists());
    Ok(std::iter::once(main).chain(settings).map(PathBuf::from).collect())
}

/// The window that the tokenizer's settings name.
pub(crate) fn window(dir: &Path) -> Result<Option<usize>, LoadError> {
    let settings: Settings = read_json_if_there(&dir.join(SETTINGS))?.unwrap_or_default();
    // transformers writes 1e30 where there is no limit.
    let sane = settings.model_max_length.filter(|length| (1.0..1e9).contains(length));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Between 1 and 1e9.
    Ok(sane.map(|length| length as usize))
}

impl Tokenizer {
    /// Reads the tokenizer below `dir`, whose ids must be below `vocabulary`.
    pub(crate) fn load(dir: &Path, spec: &TokenizerSpec) -> Result<Self, LoadError> {
        let fast = dir.join(FAST);
        let (path, mut tokenizer) = if fast.exists() {
            let read = tokenizers::Tokenizer::from_file(&fast);
            (fast.clone(), read.map_err(|error| LoadError::format(&fast, error))?)
        } else {
            (dir.join(VOCABULARY), word_piece(dir)?)
        };
        // What the file says of these is of its training, not of the model.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| LoadError::format(&path, error))?;
        let ids = tokenizer.get_vocab_size(true);
        if ids > spec.vocabulary {
            let reason = format!("{ids} tokens, the model has vectors for {}", spec.vocabulary);
            return Err(LoadError::format(&path, reason));
        }
        let processor = tokenizer.get_post_processor();
        let added = |pair| processor.map_or(0, |processor| processor.added_tokens(pair));
        let added = (added(false), added(true));
        if spec.max_tokens <= added.1 {
            return Err(LoadError::format(
                &path,
                format!("a window of {} tokens has no room", spec.max_tokens),
            ));
        }
        let markers = markers(dir, &tokenizer)?;
        let TokenizerSpec { max_tokens, lowercase, .. } = *spec;
        Ok(Self(Arc::new(Shared { tokenizer, max_tokens, lowercase, added, markers })))
    }

    /// Reads the tokenizer below `dir` for the model that the file `config` describes. Its window is the model's; whether
    /// texts are put into lower case, the directory says.
    ///
    /// # Errors
    /// A [`LoadError`] for files that cannot be read, or a tokenizer with more tokens than the model.
    pub fn open(dir: &Path, config: &Path) -> Result<Self, LoadError> {
        Self::read(dir, config, Modules::lowercases(dir)?)
    }

    /// As [`Tokenizer::open`], as `transformers` reads it, which puts no text into lower case before its tokenizer does:
    /// a whole text is not what its letters are one by one.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn open_bare(dir: &Path, config: &Path) -> Result<Self, LoadError> {
        Self::read(dir, config, false)
    }

    fn read(dir: &Path, config: &Path, lowercase: bool) -> Result<Self, LoadError> {
        let config = Config::load(config)?;
        let vocabulary = usize::try_from(config.vocabulary).unwrap_or(0);
        Self::load(dir, &TokenizerSpec { max_tokens: config.window(), vocabulary, lowercase })
    }

    /// Longest input in tokens, special ones included.
    #[must_use]
    pub fn window(&self) -> usize {
        self.0.max_tokens
    }

    /// Tokens of one text, special tokens included.
    ///
    /// # Errors
    /// [`TokenizeError::TooLong`] for a text beyond the window that may not be cut.
    pub fn encode(&self, text: &str, truncation: Truncation) -> Result<Sequence, TokenizeError> {
        self.encode_within(text, self.0.max_tokens, truncation)
    }

    /// As [`Tokenizer::encode`], with a window of `max_tokens`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_within(
        &self,
        text: &str,
        max_tokens: usize,
        truncation: Truncation,
    ) -> Result<Sequence, TokenizeError> {
        let mut encoding = self.plain(text)?;
        let tokens = encoding.len() + self.0.added.0;
        if tokens > max_tokens {
            self.cut(&mut encoding, max_tokens.saturating_sub(self.0.added.0), truncation, tokens)?;
        }
        self.finish(encoding, None)
    }

    /// Tokens of a query and a document, read together by a cross-encoder. Only the document is cut.
    ///
    /// # Errors
    /// [`TokenizeError::TooLong`] for a pair beyond the window that may not be cut, and for a query that leaves no
    /// room for a document.
    pub fn encode_pair(
        &self,
        query: &str,
        document: &str,
        truncation: Truncation,
    ) -> Result<Sequence, TokenizeError> {
        self.encode_pair_within(query, document, self.0.max_tokens, truncation)
    }

    /// As [`Tokenizer::encode_pair`], with a window of `max_tokens`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_pair`].
    pub fn encode_pair_within(
        &self,
        query: &str,
        document: &str,
        max_tokens: usize,
        truncation: Truncation,
    ) -> Result<Sequence, TokenizeError> {
        let (query, mut document) = (self.plain(query)?, self.plain(document)?);
        let tokens = query.len() + document.len() + self.0.added.1;
        if tokens > max_tokens {
            let room = max_tokens.saturating_sub(query.len() + self.0.added.1);
            let truncation = if room == 0 { Truncation::None } else { truncation };
            self.cut(&mut document, room, truncation, tokens)?;
        }
        self.finish(query, Some(document))
    }

    /// The text of its tokens, without special ones, cut at its end to `max_tokens` of them.
    ///
    /// # Errors
    /// [`TokenizeError::Failed`].
    pub fn shortened(&self, text: &str, max_tokens: usize) -> Result<String, TokenizeError> {
        let encoding = self.plain(text)?;
        let ids = encoding.get_ids();
        self.0.tokenizer.decode(&ids[..ids.len().min(max_tokens)], false).map_err(failed)
    }

    /// Ids of the tokens that stand for no text: start, end, padding, unknown.
    #[must_use]
    pub fn markers(&self) -> &[u32] {
        &self.0.markers
    }

    /// Every token of a text, never cut.
    ///
    /// # Errors
    /// [`TokenizeError::Failed`].
    pub fn tokens(&self, text: &str, special: SpecialTokens) -> Result<Vec<Token>, TokenizeError> {
        let keep = special == SpecialTokens::Keep;
        let encoding = self.0.tokenizer.encode(self.0.spelled(text).as_ref(), keep).map_err(failed)?;
        let parts = encoding.get_ids().iter().zip(encoding.get_tokens()).zip(encoding.get_offsets());
        let tokens = parts.zip(encoding.get_special_tokens_mask());
        Ok(tokens
            .map(|(((&id, token), &(start, end)), &special)| Token {
                id,
                text: token.clone(),
                special: special == 1,
                start,
                end,
            })
            .collect())
    }

    fn plain(&self, text: &str) -> Result<Encoding, TokenizeError> {
        self.0.tokenizer.encode_fast(self.0.spelled(text).as_ref(), false).map_err(failed)
    }

    fn cut(
        &self,
        encoding: &mut Encoding,
        room: usize,
        truncation: Truncation,
        tokens: usize,
    ) -> Result<(), TokenizeError> {
        match truncation {
            Truncation::None => return Err(TokenizeError::TooLong { tokens, max: self.0.max_tokens }),
            Truncation::End => encoding.truncate(room, 0, TruncationDirection::Right),
            Truncation::Start => encoding.truncate(room, 0, TruncationDirection::Left),
        }
        Ok(())
    }

    fn finish(&self, first: Encoding, second: Option<Encoding>) -> Result<Sequence, TokenizeError> {
        let encoding = self.0.tokenizer.post_process(first, second, true).map_err(failed)?;
        let ids = encoding.get_ids().to_vec();
        let second = encoding.get_type_ids().iter().position(|&segment| segment == 1).unwrap_or(ids.len());
        Ok(Sequence { ids, second })
    }
}

impl Shared {
    fn spelled<'a>(&self, text: &'a str) -> std::borrow::Cow<'a, str> {
        if self.lowercase { text.to_lowercase().into() } else { text.into() }
    }
}

/// What a tokenizer must fit.
#[derive(Clone, Debug)]
pub(crate) struct TokenizerSpec {
    /// Longest input in tokens.
    pub(crate) max_tokens: usize,
    /// Token ids the model has vectors for.
    pub(crate) vocabulary: usize,
    /// Texts are put into lower case first.
    pub(crate) lowercase: bool,
}

/// Tokens that the settings name, else those that both families' tokenizers have.
fn markers(dir: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>, LoadError> {
    let settings: Settings = read_json_if_there(&dir.join(SETTINGS))?.unwrap_or_default();
    let end = settings.eos_token.or(settings.sep_token);
    let named = [settings.cls_token, end, settings.pad_token, settings.unk_token];
    let usual = [["[CLS]", "<s>"], ["[SEP]", "</s>"], ["[PAD]", "<pad>"], ["[UNK]", "<unk>"]];
    let id = |(named, usual): (&Option<Spelling>, [&str; 2])| {
        let named = named.as_ref().and_then(|token| tokenizer.token_to_id(token.text()));
        named.or_else(|| usual.into_iter().find_map(|token| tokenizer.token_to_id(token)))
    };
    Ok(named.iter().zip(usual).filter_map(id).collect())
}

/// BERT's tokenizer from its vocabulary, as `BertTokenizer` builds it.
fn word_piece(dir: &Path) -> Result<tokenizers::Tokenizer, LoadError> {
    let path = dir.join(VOCABULARY);
    let settings: Settings = read_json_if_there(&dir.join(SETTINGS))?.unwrap_or_default();
    let name = path.to_str().ok_or_else(|| LoadError::format(&path, "its path is not UTF-8"))?;
    let model = WordPiece::from_file(name).unk_token("[UNK]".to_owned()).build();
    let mut tokenizer = tokenizers::Tokenizer::new(model.map_err(|error| LoadError::format(&path, error))?);
    let id = |token: &str| {
        let id = tokenizer.token_to_id(token);
        id.map(|id| (token.to_owned(), id))
            .ok_or_else(|| LoadError::format(&path, format!("{token} is missing")))
    };
    let processor = BertProcessing::new(id("[SEP]")?, id("[CLS]")?);
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(special).map_err(|error| LoadError::format(&path, error))?;
    let normalizer = BertNormalizer::new(
        true,
        settings.tokenize_chinese_chars.unwrap_or(true),
        settings.strip_accents,
        settings.do_lower_case.unwrap_or(true),
    );
    tokenizer.with_normalizer(Some(normalizer)).map_err(|error| LoadError::format(&path, error))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(processor));
    // Without it pieces of a word are spelled out apart.
    tokenizer.with_decoder(Some(WordPieceDecoder::default()));
    Ok(tokenizer)
}

#[allow(clippy::needless_pass_by_value)] // `map_err` hands errors over by value.
fn failed(error: tokenizers::Error) -> TokenizeError {
    TokenizeError::Failed(error.to_string())
}
