//! Whoever publishes a checkpoint.

use manifest::hex;
use proto::v1;
use proto::v1::models_client::ModelsClient;
use proto::v1::publish_response::Step;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::Gateway;

/// Files of a checkpoint: paths and contents.
pub(crate) type Files = Vec<(&'static str, Vec<u8>)>;

/// What came of a publication.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) wanted: Vec<v1::WantedFile>,
    pub(crate) progress: Vec<v1::Preparation>,
    pub(crate) published: v1::Version,
}

/// A publication that is under way.
pub(crate) struct Publication {
    requests: mpsc::Sender<v1::PublishRequest>,
    pub(crate) answers: Streaming<v1::PublishResponse>,
    pub(crate) wanted: Vec<v1::WantedFile>,
}

/// A small checkpoint of which `flavour` makes one of its own.
pub(crate) fn checkpoint(flavour: &str) -> Files {
    vec![
        ("config.json", br#"{"architectures":["BertModel"]}"#.to_vec()),
        ("model.safetensors", flavour.bytes().cycle().take(3500).collect()),
        ("1_Pooling/config.json", b"{}".to_vec()),
        ("empty", Vec::new()),
    ]
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The first message of a publication of `files`, as a checkpoint of `mini`.
pub(crate) fn begin(files: &Files) -> v1::PublishBegin {
    let file = |(path, bytes): &(&str, Vec<u8>)| v1::CheckpointFile {
        path: (*path).to_owned(),
        size: bytes.len() as u64,
        sha256: sha256(bytes),
    };
    v1::PublishBegin {
        model: "mini".into(),
        files: files.iter().map(file).collect(),
        ..v1::PublishBegin::default()
    }
}

pub(crate) fn first(begin: v1::PublishBegin) -> v1::PublishRequest {
    v1::PublishRequest { step: Some(v1::publish_request::Step::Begin(begin)) }
}

impl Publication {
    /// Begins, and waits until it is told what is wanted.
    pub(crate) async fn begin(
        mut client: ModelsClient<Channel>,
        begin: v1::PublishBegin,
    ) -> Result<Self, Status> {
        let (requests, sent) = mpsc::channel(1);
        requests.send(first(begin)).await.unwrap();
        let mut answers = client.publish(ReceiverStream::new(sent)).await?.into_inner();
        let wanted = match next(&mut answers).await? {
            Some(Step::Wants(wants)) => wants.files,
            other => panic!("{other:?} is not what is wanted"),
        };
        Ok(Self { requests, answers, wanted })
    }

    /// Sends a chunk; false where nobody takes it any more.
    pub(crate) async fn send(&self, sha256: &str, offset: usize, data: &[u8]) -> bool {
        let chunk =
            v1::PublishChunk { sha256: sha256.to_owned(), offset: offset as u64, data: data.to_vec() };
        let step = Some(v1::publish_request::Step::Chunk(chunk));
        self.requests.send(v1::PublishRequest { step }).await.is_ok()
    }

    /// Sends what is wanted of `files`, and no more than `most` bytes of each.
    pub(crate) async fn send_wanted(&self, files: &Files, most: usize) {
        for v1::WantedFile { sha256: wanted, offset } in &self.wanted {
            let (_, bytes) =
                files.iter().find(|(_, bytes)| sha256(bytes) == *wanted).expect("a file of ours");
            let from = usize::try_from(*offset).unwrap();
            let bytes = &bytes[..bytes.len().min(most)];
            for (i, chunk) in bytes[from..].chunks(700).enumerate() {
                self.send(wanted, from + i * 700, chunk).await;
            }
        }
    }

    /// Waits for the end.
    pub(crate) async fn finish(mut self) -> Result<Told, Status> {
        let mut progress = Vec::new();
        loop {
            match next(&mut self.answers).await? {
                Some(Step::Progress(told)) => progress.extend(told.trial),
                Some(Step::Published(published)) => {
                    return Ok(Told { wanted: self.wanted, progress, published });
                }
                other => panic!("{other:?} in the middle"),
            }
        }
    }
}

/// Publishes `files`.
pub(crate) async fn publish(
    client: ModelsClient<Channel>,
    begin: v1::PublishBegin,
    files: &Files,
) -> Result<Told, Status> {
    let publication = Publication::begin(client, begin).await?;
    publication.send_wanted(files, usize::MAX).await;
    publication.finish().await
}

/// Publishes a small checkpoint of `mini`; answers its digest.
pub(crate) async fn published(gateway: &Gateway, flavour: &str) -> String {
    let files = checkpoint(flavour);
    let told = publish(gateway.models().await, begin(&files), &files).await.unwrap();
    told.published.checkpoint.unwrap().digest
}

async fn next(answers: &mut Streaming<v1::PublishResponse>) -> Result<Option<Step>, Status> {
    Ok(answers.message().await?.and_then(|answer| answer.step))
}
