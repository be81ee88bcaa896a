//! Texts to tokens, without the device.

use model::Token;
use proto::v1;

use super::Service;
use crate::call::Class;
use crate::error::CallError;
use crate::wire::Tokens;

impl Service {
    pub(super) async fn tokenize_shard(&self, shard: Tokens) -> Result<v1::TokenizeResponse, CallError> {
        let provenance = Some(shard.origin.served.provenance(0));
        let sequence =
            |tokens: Vec<Token>| v1::TokenSequence { tokens: tokens.into_iter().map(wire).collect() };
        let sequences = self.read(shard, sequence).await?;
        Ok(v1::TokenizeResponse { provenance, sequences })
    }

    pub(super) async fn count_shard(&self, shard: Tokens) -> Result<v1::CountResponse, CallError> {
        let provenance = Some(shard.origin.served.provenance(0));
        let counts = self.read(shard, |tokens| number(tokens.len())).await?;
        Ok(v1::CountResponse { provenance, counts })
    }

    /// Makes something of the tokens of each text.
    async fn read<R: Send + 'static>(
        &self,
        shard: Tokens,
        make: impl Fn(Vec<Token>) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, CallError> {
        let Tokens { origin, texts, special } = shard;
        let tokenizer = origin.served.tokenizer.clone();
        let read = move |text: String| tokenizer.tokens(&text, special).map(&make);
        let done = self.tokenisers.map(Class::Interactive, texts, String::len, read).await;
        done.map_err(|unread| CallError::unread(unread, |at| format!("inputs[{}]", origin.first + at)))
    }
}

fn wire(token: Token) -> v1::Token {
    let Token { id, text, special, start, end } = token;
    let (start, end) = if special { (0, 0) } else { (number(start), number(end)) };
    v1::Token { id, text, special, start, end }
}

/// Texts are messages of at most some megabytes.
fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
