//! Callers that never stop, and check every answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::{EmbedRequest, Truncation};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::golden::{Golden, floats};

/// Callers in a closed loop.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    callers: JoinSet<Outcome>,
}

/// What callers saw.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Calls answered with the right vectors in the right order.
    pub calls: usize,
    /// Calls refused, with their codes; [`Code::DataLoss`] stands for an answer that was wrong.
    pub failures: Vec<Status>,
    /// Checkpoints that answered.
    pub digests: BTreeSet<String>,
}

impl Load {
    /// Starts `callers` that each embed `texts` golden texts a call, over `channel`.
    pub fn start(channel: &Channel, model: &str, golden: &Golden, callers: usize, texts: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let golden = Arc::new(golden.clone());
        let mut set = JoinSet::new();
        for caller in 0..callers {
            let client = EmbeddingsClient::new(channel.clone());
            let (golden, stopped, model) = (golden.clone(), stopped.clone(), model.to_owned());
            set.spawn(async move {
                let (mut outcome, mut at) = (Outcome::default(), caller * 7);
                while !*stopped.borrow() {
                    let wanted: Vec<usize> = (at..at + texts).map(|i| i % golden.texts.len()).collect();
                    outcome.note(call(client.clone(), &model, &golden, &wanted).await);
                    at += texts;
                }
                outcome
            });
        }
        Self { stop, callers: set }
    }

    /// Ends it after the calls that are under way.
    pub async fn finish(self) -> Outcome {
        self.stop.send_replace(true);
        let mut total = Outcome::default();
        for outcome in self.callers.join_all().await {
            total.calls += outcome.calls;
            total.failures.extend(outcome.failures);
            total.digests.extend(outcome.digests);
        }
        total
    }
}

impl Outcome {
    fn note(&mut self, answer: Result<String, Status>) {
        match answer {
            Ok(digest) => {
                self.calls += 1;
                self.digests.insert(digest);
            }
            Err(status) => self.failures.push(status),
        }
    }

    /// Every call was answered, by one checkpoint.
    #[track_caller]
    pub fn assert_flawless(&self) {
        assert!(
            self.failures.is_empty(),
            "{} of {} failed: {:?}",
            self.failures.len(),
            self.calls,
            self.failures
        );
        assert!(self.calls > 0, "no call was made");
        assert_eq!(self.digests.len(), 1, "{:?}", self.digests);
    }
}

/// Embeds the golden texts `wanted`, and checks what comes back; returns the digest.
async fn call(
    mut client: EmbeddingsClient<Channel>,
    model: &str,
    golden: &Golden,
    wanted: &[usize],
) -> Result<String, Status> {
    let request = EmbedRequest {
        model: model.to_owned(),
        inputs: wanted.iter().map(|&i| golden.texts[i].clone()).collect(),
        truncation: Truncation::End.into(),
        ..EmbedRequest::default()
    };
    let answer = client.embed(request).await?.into_inner();
    let wrong = |what: &str| Status::new(Code::DataLoss, what.to_owned());
    let dense = answer.dense.ok_or_else(|| wrong("no vectors"))?;
    let numbers = floats(&dense.data);
    let rows: Vec<_> = numbers.chunks_exact(dense.dimensions.max(1) as usize).collect();
    let right =
        rows.len() == wanted.len() && wanted.iter().zip(rows).all(|(&i, row)| golden.is_vector_of(i, row));
    if !right {
        return Err(wrong("another text's vector"));
    }
    Ok(answer.provenance.ok_or_else(|| wrong("no provenance"))?.digest)
}
