//! The gateway, as the verbs see it.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use proto::v1::cluster_client::ClusterClient;
use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::models_client::ModelsClient;
use proto::v1::reranking_client::RerankingClient;
use proto::v1::tokens_client::TokensClient;
use proto::v1::training_client::TrainingClient;
use proto::v1::{ListModelsRequest, Model, ModelKind};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::config;
use crate::failure::Failure;
use crate::target::{Access, Bearer, Target};

/// Answers are as large as the caller's own batches make them.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Where the gateway is and how its answers are shown.
#[derive(Args, Debug)]
pub(crate) struct Remote {
    /// The gateway, `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`
    #[arg(
        long,
        global = true,
        env = "BEIGE_TARGET",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    pub(crate) target: Target,
    #[command(flatten)]
    access: Access,
    /// Longest wait for the answer to one call, seconds
    #[arg(long, global = true, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
    /// Print JSON: one object, or one per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Remote {
    /// Connects, or says who is not there.
    pub(crate) async fn connect(&self) -> Result<Gateway, Failure> {
        Gateway::connect(&self.target, &self.access, Duration::from_secs(self.timeout)).await
    }

    /// A connection, and what each call on it shows.
    pub(crate) async fn dial(&self) -> Result<(Channel, Option<Bearer>), Failure> {
        self.target.dial(&self.access).await
    }
}

/// What a model is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Vectors: a cross-encoder gives none.
    Embed,
    /// Scores: any model gives them, a cross-encoder is made for it.
    Rerank,
    /// Anything that every model does.
    Any,
}

/// A connection to a gateway.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    channel: Channel,
    timeout: Duration,
    bearer: Option<Bearer>,
    trace_parent: Option<MetadataValue<Ascii>>,
}

impl Gateway {
    pub(crate) async fn connect(
        target: &Target,
        access: &Access,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let (channel, bearer) = target.dial(access).await?;
        let trace_parent = config::trace_parent().map(|value| value.parse()).transpose();
        let trace_parent = trace_parent.context("TRACEPARENT is not ASCII")?;
        Ok(Self { channel, timeout, bearer, trace_parent })
    }

    /// A message with the deadline and all that each call carries.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.unhurried(message);
        request.set_timeout(self.timeout);
        request
    }

    /// The same without a deadline: for what takes as long as it takes.
    pub(crate) fn unhurried<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        if let Some(parent) = &self.trace_parent {
            request.metadata_mut().insert("traceparent", parent.clone());
        }
        request
    }

    pub(crate) fn embeddings(&self) -> EmbeddingsClient<Channel> {
        EmbeddingsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn reranking(&self) -> RerankingClient<Channel> {
        RerankingClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn tokens(&self) -> TokensClient<Channel> {
        TokensClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn models(&self) -> ModelsClient<Channel> {
        ModelsClient::new(self.channel.clone())
    }

    pub(crate) fn training(&self) -> TrainingClient<Channel> {
        TrainingClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    /// All models.
    pub(crate) async fn list_models(&self) -> Result<Vec<Model>, Failure> {
        Ok(self.models().list(self.request(ListModelsRequest {})).await?.into_inner().models)
    }

    /// The model the user named, else the only one that can be meant.
    pub(crate) async fn model_for(&self, named: Option<&str>, purpose: Purpose) -> Result<String, Failure> {
        match named {
            Some(name) => Ok(name.to_owned()),
            None => choose(&self.list_models().await?, purpose),
        }
    }
}

fn choose(models: &[Model], purpose: Purpose) -> Result<String, Failure> {
    let of_kind = |kind: ModelKind| -> Vec<&Model> {
        let is =
            |model: &&Model| model.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.kind() == kind);
        models.iter().filter(is).collect()
    };
    let all: Vec<&Model> = models.iter().collect();
    let meant = match purpose {
        Purpose::Embed => of_kind(ModelKind::Embedder),
        Purpose::Rerank if all.len() > 1 => of_kind(ModelKind::CrossEncoder),
        Purpose::Rerank | Purpose::Any => all.clone(),
    };
    let names = |models: &[&Model]| models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
    match (meant.as_slice(), all.as_slice()) {
        ([one], _) => Ok(one.name.clone()),
        (_, []) => Err(Failure::Refused("the server has no model ready".to_owned())),
        ([], all) if purpose == Purpose::Embed => {
            Err(Failure::Refused(format!("the server has no model that embeds, only {}", names(all))))
        }
        ([], many) | (many, _) => Err(Failure::Usage(format!(
            "the server has several models, say which with --model: {}",
            names(many)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::Checkpoint;

    use super::*;

    fn model(name: &str) -> Model {
        let kind = if name.starts_with("rerank") { ModelKind::CrossEncoder } else { ModelKind::Embedder };
        let checkpoint = Checkpoint { kind: kind.into(), ..Checkpoint::default() };
        Model { name: name.to_owned(), checkpoint: Some(checkpoint), ..Model::default() }
    }

    #[track_caller]
    fn check(names: &[&str], purpose: Purpose, expected: Result<&str, &str>) {
        let models: Vec<Model> = names.iter().map(|name| model(name)).collect();
        let chosen = choose(&models, purpose).map_err(|failure| failure.to_string());
        assert_eq!(chosen.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn the_only_model_that_can_be_meant_needs_no_name() {
        check(&["mini"], Purpose::Any, Ok("mini"));
        check(&["mini", "reranker"], Purpose::Embed, Ok("mini"));
        check(&["mini", "reranker"], Purpose::Rerank, Ok("reranker"));
        check(&["mini"], Purpose::Rerank, Ok("mini"));
    }

    #[test]
    fn several_models_are_listed() {
        let several = "the server has several models, say which with --model: base, mini";
        check(&["base", "mini"], Purpose::Embed, Err(several));
        check(&["base", "mini"], Purpose::Rerank, Err(several));
        check(&["base", "mini"], Purpose::Any, Err(several));
        check(&["reranker"], Purpose::Embed, Err("the server has no model that embeds, only reranker"));
        check(&[], Purpose::Any, Err("the server has no model ready"));
    }
}
