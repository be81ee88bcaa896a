//! Texts to vectors.

use model::Sequence;
use proto::worker::v1::EmbedShardResult;
use tokio::time::Instant;
use tracing::Span;

use super::Service;
use crate::engine::Job;
use crate::error::CallError;
use crate::vectors;
use crate::wire::{Embed, prompted};

impl Service {
    pub(super) async fn embed_shard(
        &self,
        shard: Embed,
        due: Option<Instant>,
    ) -> Result<EmbedShardResult, CallError> {
        let Embed { origin, texts, prompt, truncation, class, form } = shard;
        let served = origin.served;
        Span::current().record("model", &*served.name);
        let mut held = self.admit(&served, class, due, texts.iter().map(String::as_str))?;
        let field = |at: usize| format!("inputs[{}]", origin.first + at);
        let tokenizer = served.tokenizer.clone();
        let read = move |text| tokenizer.encode(&prompted(prompt.as_deref(), text), truncation);
        let sequences = self.tokenisers.map(class, texts, String::len, read).await;
        let sequences = sequences.map_err(|unread| CallError::unread(unread, field))?;
        let lengths: Vec<usize> = sequences.iter().map(Sequence::tokens).collect();
        let tokens = lengths.iter().sum();
        Span::current().record("tokens", tokens);
        held.set(tokens);
        let job = Job {
            model: served.name.clone(),
            digest: served.digest.clone(),
            caller: origin.caller,
            class,
            deadline: due,
            sequences,
        };
        let rows = self.engine.run(job, &mut held).await;
        let rows = rows.map_err(|(at, failure)| CallError::failed(failure, field(at), lengths[at]))?;
        let dense = vectors::pack(rows, form);
        Ok(EmbedShardResult {
            provenance: Some(served.provenance(dense.dimensions)),
            dense: Some(dense),
            input_tokens: lengths
                .into_iter()
                .map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX))
                .collect(),
            alias: self.alias(&origin.model),
        })
    }
}
