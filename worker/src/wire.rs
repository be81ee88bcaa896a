//! Requests as they come from gateways, and what they mean. Nothing beyond this module sees a number that stands
//! for a choice.

use std::fmt;
use std::sync::Arc;

use model::{Card, Kind, SpecialTokens, Truncation};
use proto::v1;
use proto::worker::v1::{CountShard, EmbedShard, RerankShard, ShardOrigin, TokenizeShard};

use crate::call::Class;
use crate::catalogue::{Catalogue, Served};
use crate::error::CallError;
use crate::vectors::{Encoding, Form, Length};

/// What is wrong with a request, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {fault}")]
pub struct InvalidRequest {
    /// The field, as the caller knows it: `inputs[7]`.
    pub field: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It must be there, or must not be empty.
    #[error("it is missing")]
    Missing,
    /// The number stands for nothing.
    #[error("{0} stands for nothing here")]
    Unknown(i32),
    /// It is longer than the model's window.
    #[error("it has {tokens} tokens, and the model's window {max}")]
    TooLong {
        /// Its length, special tokens included.
        tokens: usize,
        /// The window.
        max: usize,
    },
    /// The model has no vectors of so many numbers.
    #[error("{asked} numbers are asked for, and the model's vectors have from 1 to {max}")]
    Dimensions {
        /// As asked for.
        asked: u32,
        /// The model's own.
        max: usize,
    },
    /// The checkpoint makes no vectors.
    #[error("this checkpoint is a cross-encoder, which scores pairs and makes no vectors")]
    NoVectors,
    /// The checkpoint's scores are not logits.
    #[error("the scores of this checkpoint are dot products, which have no sigmoid form")]
    NoSigmoid,
    /// It is not what it should be, for this reason.
    #[error("{0}")]
    Unfit(String),
    /// It is not a timeout.
    #[error("it is one to eight digits and a unit: H, M, S, m, u or n")]
    Timeout,
}

/// Where a shard belongs.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The checkpoint that is to do it.
    pub served: Arc<Served>,
    /// The model's name that was asked for.
    pub model: String,
    /// Who asked.
    pub caller: Arc<str>,
    /// Position, in the caller's request, of the first input here.
    pub first: usize,
}

/// A shard of texts to embed.
#[derive(Clone, Debug)]
pub struct Embed {
    /// Where it belongs.
    pub origin: Origin,
    /// The texts, at least one.
    pub texts: Vec<String>,
    /// What goes in front of each.
    pub prompt: Option<String>,
    /// What happens to long ones.
    pub truncation: Truncation,
    /// How urgent it is.
    pub class: Class,
    /// The vectors wanted.
    pub form: Form,
}

/// A shard of documents to score.
#[derive(Clone, Debug)]
pub struct Rerank {
    /// Where it belongs.
    pub origin: Origin,
    /// The question, with what goes in front of it.
    pub query: String,
    /// The documents, at least one.
    pub documents: Vec<String>,
    /// What goes in front of each document.
    pub document_prompt: Option<String>,
    /// How they are scored.
    pub scoring: Scoring,
    /// What happens to long ones.
    pub truncation: Truncation,
    /// How urgent it is.
    pub class: Class,
}

/// How documents are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// By the logit of a cross-encoder.
    Logit,
    /// By its logistic function.
    Sigmoid,
    /// By the dot product of two vectors.
    DotProduct,
}

/// Texts to tokenise.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Where they belong.
    pub origin: Origin,
    /// The texts, at least one; any may be empty.
    pub texts: Vec<String>,
    /// What becomes of special tokens.
    pub special: SpecialTokens,
}

impl Embed {
    /// Understands a shard.
    ///
    /// # Errors
    /// [`CallError::NotLoaded`] before anything else; [`CallError::Invalid`] names the first field at fault.
    pub fn parse(shard: EmbedShard, catalogue: &Catalogue) -> Result<Self, CallError> {
        let EmbedShard { origin, request } = shard;
        let origin = Origin::parse(origin, catalogue)?;
        let v1::EmbedRequest {
            model: _, // Resolved by the gateway, as `require` is.
            inputs,
            input_type,
            instruction,
            outputs,
            encoding,
            dimensions,
            normalize,
            truncation,
            require: _,
            priority,
        } = request.ok_or_else(|| missing("request"))?;
        let card = &origin.served.card;
        if card.kind == Kind::CrossEncoder {
            return Err(invalid("model", Fault::NoVectors).into());
        }
        if inputs.is_empty() {
            return Err(missing("inputs").into());
        }
        for (at, output) in outputs.into_iter().enumerate() {
            // Dense is all there is; it is also the default.
            known::<v1::Output>(&format!("outputs[{at}]"), output)?;
        }
        let prompt = match known("input_type", input_type)? {
            v1::InputType::Unspecified => None,
            v1::InputType::Query => card.query_prompt.clone(),
            v1::InputType::Document => card.document_prompt.clone(),
        };
        let form = Form {
            encoding: encoding_of(encoding)?,
            dimensions: dimensions_of(dimensions, card)?,
            length: if normalize.unwrap_or(card.normalize) { Length::One } else { Length::AsMade },
        };
        Ok(Self {
            texts: inputs,
            prompt: instruction.or(prompt),
            truncation: truncation_of(truncation)?,
            class: class_of(priority)?,
            form,
            origin,
        })
    }
}

impl Rerank {
    /// Understands a shard.
    ///
    /// # Errors
    /// As [`Embed::parse`].
    pub fn parse(shard: RerankShard, catalogue: &Catalogue) -> Result<Self, CallError> {
        let RerankShard { origin, request } = shard;
        let origin = Origin::parse(origin, catalogue)?;
        let v1::RerankRequest {
            model: _, // Resolved by the gateway, as `require` is; `top_n` is applied where all scores are.
            query,
            documents,
            top_n: _,
            score_form,
            instruction,
            truncation,
            require: _,
            priority,
        } = request.ok_or_else(|| missing("request"))?;
        if documents.is_empty() {
            return Err(missing("documents").into());
        }
        let card = &origin.served.card;
        let scoring = match (card.kind, known("score_form", score_form)?) {
            (Kind::CrossEncoder, v1::ScoreForm::Unspecified | v1::ScoreForm::Sigmoid) => Scoring::Sigmoid,
            (Kind::CrossEncoder, v1::ScoreForm::Raw) => Scoring::Logit,
            (Kind::Embedder, v1::ScoreForm::Unspecified | v1::ScoreForm::Raw) => Scoring::DotProduct,
            (Kind::Embedder, v1::ScoreForm::Sigmoid) => {
                return Err(invalid("score_form", Fault::NoSigmoid).into());
            }
        };
        let prompt = instruction.or_else(|| card.query_prompt.clone());
        Ok(Self {
            query: prompted(prompt.as_deref(), query),
            documents,
            document_prompt: card.document_prompt.clone(),
            scoring,
            truncation: truncation_of(truncation)?,
            class: class_of(priority)?,
            origin,
        })
    }
}

impl Tokens {
    /// Understands a call for tokens.
    ///
    /// # Errors
    /// As [`Embed::parse`].
    pub fn parse(shard: TokenizeShard, catalogue: &Catalogue) -> Result<Self, CallError> {
        let TokenizeShard { origin, request } = shard;
        let v1::TokenizeRequest { model: _, inputs, without_special_tokens } =
            request.ok_or_else(|| missing("request"))?;
        Self::new(origin, inputs, without_special_tokens, catalogue)
    }

    /// Understands a call for counts.
    ///
    /// # Errors
    /// As [`Embed::parse`].
    pub fn parse_count(shard: CountShard, catalogue: &Catalogue) -> Result<Self, CallError> {
        let CountShard { origin, request } = shard;
        let v1::CountRequest { model: _, inputs, without_special_tokens } =
            request.ok_or_else(|| missing("request"))?;
        Self::new(origin, inputs, without_special_tokens, catalogue)
    }

    fn new(
        origin: Option<ShardOrigin>,
        texts: Vec<String>,
        without_special: bool,
        catalogue: &Catalogue,
    ) -> Result<Self, CallError> {
        let origin = Origin::parse(origin, catalogue)?;
        if texts.is_empty() {
            return Err(missing("inputs").into());
        }
        let special = if without_special { SpecialTokens::Omit } else { SpecialTokens::Keep };
        Ok(Self { origin, texts, special })
    }
}

impl Origin {
    fn parse(origin: Option<ShardOrigin>, catalogue: &Catalogue) -> Result<Self, CallError> {
        let ShardOrigin { digest, caller, first_input, model } = origin.ok_or_else(|| missing("origin"))?;
        let Some(served) = catalogue.find(&model, &digest) else {
            return Err(CallError::NotLoaded { model, digest, alias: None });
        };
        Ok(Self { served, model, caller: caller.into(), first: first_input as usize })
    }
}

/// `text` as the model is to read it.
#[must_use]
pub fn prompted(prompt: Option<&str>, text: String) -> String {
    match prompt {
        Some(prompt) if !prompt.is_empty() => format!("{prompt}{text}"),
        Some(_) | None => text,
    }
}

fn encoding_of(number: i32) -> Result<Encoding, InvalidRequest> {
    Ok(match known("encoding", number)? {
        v1::Encoding::Unspecified | v1::Encoding::F32 => Encoding::F32,
        v1::Encoding::F16 => Encoding::F16,
        v1::Encoding::Int8 => Encoding::Int8,
        v1::Encoding::Binary => Encoding::Binary,
    })
}

fn dimensions_of(asked: Option<u32>, card: &Card) -> Result<usize, InvalidRequest> {
    let Some(asked) = asked else { return Ok(card.dimensions) };
    match asked as usize {
        dimensions if (1..=card.dimensions).contains(&dimensions) => Ok(dimensions),
        _ => Err(invalid("dimensions", Fault::Dimensions { asked, max: card.dimensions })),
    }
}

fn truncation_of(number: i32) -> Result<Truncation, InvalidRequest> {
    Ok(match known("truncation", number)? {
        v1::Truncation::Unspecified | v1::Truncation::None => Truncation::None,
        v1::Truncation::End => Truncation::End,
        v1::Truncation::Start => Truncation::Start,
    })
}

fn class_of(number: i32) -> Result<Class, InvalidRequest> {
    Ok(match known("priority", number)? {
        v1::Priority::Unspecified | v1::Priority::Interactive => Class::Interactive,
        v1::Priority::Bulk => Class::Bulk,
    })
}

fn known<E: TryFrom<i32>>(field: &str, number: i32) -> Result<E, InvalidRequest> {
    E::try_from(number).map_err(|_| invalid(field, Fault::Unknown(number)))
}

fn missing(field: &str) -> InvalidRequest {
    invalid(field, Fault::Missing)
}

fn invalid(field: impl fmt::Display, fault: Fault) -> InvalidRequest {
    InvalidRequest { field: field.to_string(), fault }
}

#[cfg(test)]
mod tests;
