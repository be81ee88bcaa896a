//! A stream that stays open, and with it the checkpoint that it was first answered by.

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::{EmbedRequest, EmbedResponse};
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use crate::history::Digest;
use crate::{PATIENCE, Process, channel};

/// A stream at a gateway: until it ends, that checkpoint is not let go, and a swap that needs it gone waits.
#[derive(Debug)]
pub struct Lingering {
    /// The checkpoint.
    pub digest: Digest,
    model: String,
    requests: mpsc::Sender<EmbedRequest>,
    answers: Streaming<EmbedResponse>,
}

impl Lingering {
    /// Opens a stream to `model` at `gateway`, and has its first answer.
    pub async fn at(gateway: &Process, model: &str) -> Self {
        let (requests, taken) = mpsc::channel(1);
        requests.send(question(model)).await.unwrap();
        let opening = Request::new(ReceiverStream::new(taken));
        let opened = EmbeddingsClient::new(channel(gateway)).embed_stream(opening).await;
        let mut answers = opened.unwrap().into_inner();
        let digest = answer(&mut answers).await;
        Self { digest, model: model.to_owned(), requests, answers }
    }

    /// Asks once more, is answered by the same checkpoint, and ends.
    pub async fn end(mut self) {
        self.requests.send(question(&self.model)).await.unwrap();
        assert_eq!(answer(&mut self.answers).await, self.digest, "a stream is of one checkpoint");
    }
}

fn question(model: &str) -> EmbedRequest {
    let inputs = vec!["moss on the north side".to_owned()];
    EmbedRequest { model: model.to_owned(), inputs, ..EmbedRequest::default() }
}

/// Which checkpoint the next answer is of.
async fn answer(answers: &mut Streaming<EmbedResponse>) -> Digest {
    let message = time::timeout(PATIENCE, answers.message()).await.expect("it is answered");
    let answered = message.unwrap().expect("the stream goes on");
    answered.provenance.unwrap().digest.into()
}
