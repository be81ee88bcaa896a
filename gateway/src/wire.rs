//! From the wire to what the gateway works with; the only module that takes generated requests apart.
//!
//! Each `parse` checks a request by itself, each `fits` checks it against the checkpoint it was resolved to. Both
//! name the first field at fault. What only a tokenizer can tell (an input longer than the window) is the workers'.

use std::fmt;

use cluster::Name;
use proto::v1;

use crate::checkpoint::{Card, Digest, Kind};

pub mod swaps;
#[cfg(test)]
mod tests;

/// A `TokenizeRequest` may hold this many of the longest texts in all: its answer is twenty times as long.
const TOKENIZED_TEXTS: usize = 4;

/// How much one request may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Texts of one request, counting no query.
    pub inputs: usize,
    /// Bytes of one text in UTF-8.
    pub text_bytes: usize,
}

/// A request that has to be repaired: the first field at fault, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {fault}")]
pub struct InvalidRequest {
    /// As in the `.proto` file, with positions from 0: `inputs[3]`.
    pub field: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a field. As a sentence it follows the field's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is in it.
    Empty,
    /// Nothing that a model could read is in it.
    Blank,
    /// Send fewer entries.
    TooMany {
        /// Entries there are.
        got: usize,
        /// Entries there may be.
        max: usize,
    },
    /// Send less text.
    TooLong {
        /// Bytes there are.
        bytes: usize,
        /// Bytes there may be.
        max: usize,
    },
    /// An enum number of another release, or of nobody's.
    Unknown(i32),
    /// A number too small or too large.
    Outside {
        /// The number.
        got: u32,
        /// The largest one; the smallest is 1.
        max: u32,
    },
    /// Not of the form it should have: why.
    Malformed(String),
    /// Nothing that this model does: why.
    Unfit(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "is required and must not be empty"),
            Self::Blank => write!(f, "holds only white space or control characters"),
            Self::TooMany { got, max } => write!(f, "has {got} entries, more than the limit of {max}"),
            Self::TooLong { bytes, max } => write!(f, "has {bytes} bytes, more than the limit of {max}"),
            Self::Unknown(value) => write!(f, "has the unknown value {value}"),
            Self::Outside { got, max } => write!(f, "is {got}, outside of 1 to {max}"),
            Self::Malformed(why) => write!(f, "is malformed: {why}"),
            Self::Unfit(why) => write!(f, "does not fit the model: {why}"),
        }
    }
}

/// Who goes first when workers are busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Someone is waiting.
    Interactive,
    /// A job.
    Bulk,
}

/// What the caller insists on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Require {
    /// The very checkpoint.
    Digest(Digest),
    /// A checkpoint of this index space.
    IndexSpace(String),
}

/// What a request asks for, apart from its texts: which checkpoint, before it is resolved, and how urgently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The alias.
    pub model: Name,
    /// One checkpoint of it, where the caller wrote `alias@digest`.
    pub digest: Option<Digest>,
    /// What the caller insists on.
    pub require: Option<Require>,
    /// The epoch that the caller has seen already; 0 for none.
    pub min_epoch: u64,
    /// Who goes first.
    pub class: Class,
}

/// A request that a worker answers, whole or in shards.
pub trait Ask: Sized {
    /// What arrives.
    type Wire: Send + 'static;

    /// Checks what can be checked without knowing the checkpoint.
    ///
    /// # Errors
    /// Names the first field at fault.
    fn parse(wire: Self::Wire, limits: &Limits) -> Result<Self, InvalidRequest>;

    /// Which checkpoint it is about, and how urgent it is.
    fn terms(&self) -> &Terms;

    /// Checks the rest.
    ///
    /// # Errors
    /// Names a field that asks of the checkpoint what it does not do.
    fn fits(&self, card: &Card) -> Result<(), InvalidRequest>;
}

/// Texts to be embedded.
#[derive(Clone, Debug)]
pub struct EmbedJob {
    /// Which checkpoint, and how urgently.
    pub terms: Terms,
    /// The texts.
    pub inputs: Vec<String>,
    /// Everything else about the request, as it came: what each shard repeats.
    pub form: v1::EmbedRequest,
}

impl Ask for EmbedJob {
    type Wire = v1::EmbedRequest;

    fn parse(wire: v1::EmbedRequest, limits: &Limits) -> Result<Self, InvalidRequest> {
        // No `..`: a new wire field must be handled here before the crate compiles.
        let v1::EmbedRequest {
            model,
            inputs,
            input_type,
            instruction,
            outputs,
            encoding,
            dimensions,
            normalize,
            truncation,
            require,
            priority,
        } = wire;
        let terms = Terms::parse(&model, require, priority)?;
        texts("inputs", &inputs, limits)?;
        known::<v1::InputType>("input_type", input_type)?;
        short("instruction", instruction.as_deref().unwrap_or_default(), limits)?;
        for (i, &output) in outputs.iter().enumerate() {
            known::<v1::Output>(&format!("outputs[{i}]"), output)?;
        }
        known::<v1::Encoding>("encoding", encoding)?;
        at_least_one("dimensions", dimensions)?;
        known::<v1::Truncation>("truncation", truncation)?;
        let form = v1::EmbedRequest {
            model,
            inputs: Vec::new(),
            input_type,
            instruction,
            outputs,
            encoding,
            dimensions,
            normalize,
            truncation,
            require: None,
            priority,
        };
        Ok(Self { terms, inputs, form })
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn fits(&self, card: &Card) -> Result<(), InvalidRequest> {
        if card.kind != Kind::Embedder {
            return Err(invalid("model", Fault::Unfit("it is a cross-encoder, which has no embeddings")));
        }
        let max = card.checkpoint.dimensions;
        match self.form.dimensions {
            Some(got) if got > max => Err(invalid("dimensions", Fault::Outside { got, max })),
            Some(_) | None => Ok(()),
        }
    }
}

/// Documents to be scored.
#[derive(Clone, Debug)]
pub struct RerankJob {
    /// Which checkpoint, and how urgently.
    pub terms: Terms,
    /// The documents.
    pub documents: Vec<String>,
    /// How many of the best are wanted; `None` for all.
    pub top_n: Option<usize>,
    /// Everything else about the request, as it came: what each shard repeats.
    pub form: v1::RerankRequest,
}

impl Ask for RerankJob {
    type Wire = v1::RerankRequest;

    fn parse(wire: v1::RerankRequest, limits: &Limits) -> Result<Self, InvalidRequest> {
        let v1::RerankRequest {
            model,
            query,
            documents,
            top_n,
            score_form,
            instruction,
            truncation,
            require,
            priority,
        } = wire;
        let terms = Terms::parse(&model, require, priority)?;
        text("query", &query, limits)?;
        texts("documents", &documents, limits)?;
        at_least_one("top_n", top_n)?;
        known::<v1::ScoreForm>("score_form", score_form)?;
        short("instruction", instruction.as_deref().unwrap_or_default(), limits)?;
        known::<v1::Truncation>("truncation", truncation)?;
        let form = v1::RerankRequest {
            model,
            query,
            documents: Vec::new(),
            top_n: None,
            score_form,
            instruction,
            truncation,
            require: None,
            priority,
        };
        Ok(Self { terms, documents, top_n: top_n.map(|n| n as usize), form })
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn fits(&self, card: &Card) -> Result<(), InvalidRequest> {
        let why = "a sigmoid is of a cross-encoder's scores, and this is an embedding model";
        match (card.kind, self.form.score_form()) {
            (Kind::Embedder, v1::ScoreForm::Sigmoid) => Err(invalid("score_form", Fault::Unfit(why))),
            (Kind::Embedder, v1::ScoreForm::Raw | v1::ScoreForm::Unspecified) | (Kind::CrossEncoder, _) => {
                Ok(())
            }
        }
    }
}

/// Texts whose tokens are wanted.
#[derive(Clone, Debug)]
pub struct TokenizeJob {
    /// Which checkpoint.
    pub terms: Terms,
    /// The request as it came.
    pub form: v1::TokenizeRequest,
}

impl Ask for TokenizeJob {
    type Wire = v1::TokenizeRequest;

    fn parse(wire: v1::TokenizeRequest, limits: &Limits) -> Result<Self, InvalidRequest> {
        let v1::TokenizeRequest { model, inputs, without_special_tokens } = wire;
        let terms = Terms::parse(&model, None, 0)?;
        maybe_empty_texts(&inputs, limits)?;
        let (bytes, max) = (inputs.iter().map(String::len).sum(), TOKENIZED_TEXTS * limits.text_bytes);
        if bytes > max {
            return Err(invalid("inputs", Fault::TooLong { bytes, max }));
        }
        Ok(Self { terms, form: v1::TokenizeRequest { model, inputs, without_special_tokens } })
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn fits(&self, _card: &Card) -> Result<(), InvalidRequest> {
        Ok(())
    }
}

/// Texts whose token counts are wanted.
#[derive(Clone, Debug)]
pub struct CountJob {
    /// Which checkpoint.
    pub terms: Terms,
    /// The request as it came.
    pub form: v1::CountRequest,
}

impl Ask for CountJob {
    type Wire = v1::CountRequest;

    fn parse(wire: v1::CountRequest, limits: &Limits) -> Result<Self, InvalidRequest> {
        let v1::CountRequest { model, inputs, without_special_tokens } = wire;
        let terms = Terms::parse(&model, None, 0)?;
        maybe_empty_texts(&inputs, limits)?;
        Ok(Self { terms, form: v1::CountRequest { model, inputs, without_special_tokens } })
    }

    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn fits(&self, _card: &Card) -> Result<(), InvalidRequest> {
        Ok(())
    }
}

/// The alias in a `GetModelRequest`.
///
/// # Errors
/// Where it is no name.
pub fn model_name(wire: v1::GetModelRequest) -> Result<Name, InvalidRequest> {
    let v1::GetModelRequest { name } = wire;
    alias("name", &name)
}

impl Terms {
    /// The terms of a job that does the same on `digest`.
    #[must_use]
    pub fn copy(self, digest: Digest) -> Self {
        Self { model: self.model, digest: Some(digest), require: None, min_epoch: 0, class: Class::Bulk }
    }

    fn parse(model: &str, require: Option<v1::Require>, priority: i32) -> Result<Self, InvalidRequest> {
        let (name, digest) = match model.rsplit_once('@') {
            None => (model, None),
            Some((name, digest)) => (name, Some(digest_in("model", digest)?)),
        };
        let v1::Require { what, min_epoch } = require.unwrap_or_default();
        let require = match what {
            None => None,
            Some(v1::require::What::Digest(digest)) => {
                Some(Require::Digest(digest_in("require.digest", &digest)?))
            }
            Some(v1::require::What::IndexSpace(space)) if space.is_empty() => {
                return Err(invalid("require.index_space", Fault::Empty));
            }
            Some(v1::require::What::IndexSpace(space)) => Some(Require::IndexSpace(space)),
        };
        Ok(Self { model: alias("model", name)?, digest, require, min_epoch, class: class(priority)? })
    }
}

fn invalid(field: &str, fault: Fault) -> InvalidRequest {
    InvalidRequest { field: field.to_owned(), fault }
}

fn alias(field: &str, name: &str) -> Result<Name, InvalidRequest> {
    if name.is_empty() {
        return Err(invalid(field, Fault::Empty));
    }
    Name::parse(name).map_err(|error| invalid(field, Fault::Malformed(error.to_string())))
}

fn digest_in(field: &str, text: &str) -> Result<Digest, InvalidRequest> {
    let why = "a digest is 64 lower-case hexadecimal digits";
    Digest::parse(text).ok_or_else(|| invalid(field, Fault::Malformed(why.to_owned())))
}

fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, InvalidRequest> {
    E::try_from(value).map_err(|_| invalid(field, Fault::Unknown(value)))
}

fn class(priority: i32) -> Result<Class, InvalidRequest> {
    Ok(match known("priority", priority)? {
        v1::Priority::Unspecified | v1::Priority::Interactive => Class::Interactive,
        v1::Priority::Bulk => Class::Bulk,
    })
}

fn at_least_one(field: &str, number: Option<u32>) -> Result<(), InvalidRequest> {
    match number {
        Some(0) => Err(invalid(field, Fault::Outside { got: 0, max: u32::MAX })),
        Some(_) | None => Ok(()),
    }
}

fn few(field: &str, texts: &[String], limits: &Limits) -> Result<(), InvalidRequest> {
    match texts.len() {
        0 => Err(invalid(field, Fault::Empty)),
        got if got > limits.inputs => Err(invalid(field, Fault::TooMany { got, max: limits.inputs })),
        _ => Ok(()),
    }
}

fn texts(field: &str, texts: &[String], limits: &Limits) -> Result<(), InvalidRequest> {
    few(field, texts, limits)?;
    let faulty = texts.iter().enumerate().find_map(|(i, one)| Some((i, fault_of(one, limits)?)));
    faulty.map_or(Ok(()), |(i, fault)| Err(invalid(&format!("{field}[{i}]"), fault)))
}

fn maybe_empty_texts(texts: &[String], limits: &Limits) -> Result<(), InvalidRequest> {
    few("inputs", texts, limits)?;
    texts.iter().enumerate().try_for_each(|(i, one)| short(&format!("inputs[{i}]"), one, limits))
}

fn text(field: &str, text: &str, limits: &Limits) -> Result<(), InvalidRequest> {
    fault_of(text, limits).map_or(Ok(()), |fault| Err(invalid(field, fault)))
}

fn short(field: &str, text: &str, limits: &Limits) -> Result<(), InvalidRequest> {
    too_long(text, limits).map_or(Ok(()), |fault| Err(invalid(field, fault)))
}

fn fault_of(text: &str, limits: &Limits) -> Option<Fault> {
    if text.is_empty() {
        return Some(Fault::Empty);
    }
    // Length first: what is too long is not read.
    too_long(text, limits).or_else(|| text.chars().all(is_blank).then_some(Fault::Blank))
}

fn too_long(text: &str, limits: &Limits) -> Option<Fault> {
    let (bytes, max) = (text.len(), limits.text_bytes);
    (bytes > max).then_some(Fault::TooLong { bytes, max })
}

/// Whether a character leaves nothing for a model to read: white space, controls, and the zero-width characters
/// that editors leave behind.
fn is_blank(character: char) -> bool {
    let zero_width = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}');
    character.is_whitespace() || character.is_control() || zero_width
}
