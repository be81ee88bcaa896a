//! One batch, one call, one answer that can be trusted.

use std::time::Duration;

use proto::v1::require::What;
use proto::v1::{EmbedRequest, EmbedResponse, GetModelRequest, Provenance, Require};
use publisher::{is_lost, persist};
use tonic::{Code, Status};

use crate::failure::{self, Failure, waiting};
use crate::print;
use crate::remote::Gateway;

use super::batches::Batch;
use super::rows::Rows;

/// Makes the calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    gateway: Gateway,
    template: EmbedRequest,
    patience: Duration,
}

/// A batch with its vectors.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) batch: Batch,
    pub(crate) provenance: Provenance,
    pub(crate) tokens: u64,
    pub(crate) rows: Rows,
}

impl Caller {
    pub(crate) fn new(gateway: Gateway, template: EmbedRequest, patience: Duration) -> Self {
        Self { gateway, template, patience }
    }

    /// Embeds a batch, by the checkpoint `digest` if one is given.
    pub(crate) async fn embed(&self, mut batch: Batch, digest: Option<&str>) -> Result<Answer, Failure> {
        let inputs = batch.texts.clone();
        let mut request = EmbedRequest { inputs, ..self.template.clone() };
        if let Some(digest) = digest {
            // By name, so that it is found while loaded, even after the alias has moved on.
            request.model = format!("{}@{digest}", self.alias());
            request.require = Some(Require { what: Some(What::Digest(digest.to_owned())), min_epoch: 0 });
        }
        let call = async || self.gateway.embeddings().embed(self.gateway.request(request.clone())).await;
        let response = match persist(self.patience, waiting, call).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Err(self.explain(status, &batch, digest).await),
        };
        let EmbedResponse { provenance, usage, dense, input_tokens: _ } = response;
        let provenance = provenance.unwrap_or_default();
        if digest.is_some_and(|digest| digest != provenance.digest) {
            return Err(Failure::Refused(format!(
                "the server answered with the checkpoint {} where another was required",
                print::short(&provenance.digest)
            )));
        }
        let rows = Rows::parse(dense.unwrap_or_default(), self.template.encoding(), batch.texts.len())?;
        // Only the human form shows texts, and it needs but their beginning.
        batch.texts.iter_mut().for_each(|text| *text = print::printable(text, 40));
        Ok(Answer { batch, provenance, tokens: usage.unwrap_or_default().tokens, rows })
    }

    /// The model's name without a digest.
    fn alias(&self) -> &str {
        self.template.model.split('@').next().unwrap_or_default()
    }

    async fn explain(&self, status: Status, batch: &Batch, digest: Option<&str>) -> Failure {
        let gone = matches!(status.code(), Code::FailedPrecondition | Code::NotFound);
        if let (Some(digest), true) = (digest, gone && !is_lost(&status)) {
            return self.checkpoint_gone(digest).await;
        }
        let place = failure::field(&status).and_then(|field| input_place(&field));
        match (Failure::from(status), place) {
            (Failure::Refused(sentence), Some(place)) => {
                Failure::Refused(format!("{sentence}: it is text {} of the input", batch.first + place + 1))
            }
            (failure, _) => failure,
        }
    }

    async fn checkpoint_gone(&self, digest: &str) -> Failure {
        let name = self.alias().to_owned();
        let now = self.gateway.models().get(self.gateway.request(GetModelRequest { name })).await;
        let now =
            now.ok().and_then(|model| model.into_inner().checkpoint).map(|checkpoint| checkpoint.digest);
        let now = now.map_or_else(String::new, |now| format!(" (the model is now {})", print::short(&now)));
        Failure::Refused(format!(
            "the checkpoint has changed: {}@{}, which made the vectors so far, is no longer served{now}, and vectors \
             of two checkpoints are not mixed",
            self.alias(),
            print::short(digest),
        ))
    }
}

/// The position in `inputs[7]`.
fn input_place(field: &str) -> Option<u64> {
    field.strip_prefix("inputs[")?.split(']').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_names_the_place_of_an_input() {
        assert_eq!(input_place("inputs[7]"), Some(7));
        assert_eq!(input_place("inputs[7].text"), Some(7));
        assert_eq!(input_place("dimensions"), None);
    }
}
