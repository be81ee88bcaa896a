//! A cluster that speaks TLS on every leg and lets known keys in: who is refused is told why and counted, and nobody's
//! secret is found in a log.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::models_client::ModelsClient;
use proto::v1::publish_request::Step;
use proto::v1::{
    CheckpointFile, EmbedRequest, EmbedResponse, ListModelsRequest, PublishBegin, PublishChunk,
    PublishRequest,
};
use tempfile::TempDir;
use tests::{Cluster, PATIENCE, Plan, Process, checkpoint};
use tls::secret::{self, Fingerprint};
use tls::testing::{Authority, Files, Validity};
use tls::{Client, Dialer};
use tokio::time::{self, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

const HOST: &str = "127.0.0.1";

/// What callers have embedded: nobody's business either.
const TEXT: &str = "a letter to my physician";

/// An authority, certificates of it in files, and a file of keys.
struct Office {
    authority: Authority,
    directory: TempDir,
    /// What nobody may find anywhere: secrets of keys, and a line of each private key.
    secrets: Vec<String>,
}

impl Office {
    fn open() -> Self {
        Self { authority: Authority::named("ours"), directory: tempfile::tempdir().unwrap(), secrets: vec![] }
    }

    fn files(&self) -> Files<'_> {
        Files(self.directory.path())
    }

    /// Settings of a process: a certificate called `name`, and the authority that others are held to. `flags` name the
    /// certificate, its key and the authority.
    fn identity(&mut self, name: &str, flags: [&str; 3]) -> Vec<String> {
        let issued = self.authority.issue(&[HOST], Validity::Lasting);
        let (certificate, key) = self.files().identity(name, &issued);
        let authorities = self.files().authorities("ca", &[&self.authority]);
        self.secrets.push(fs::read_to_string(&key).unwrap().lines().nth(1).unwrap().to_owned());
        let paths: [PathBuf; 3] = [certificate, key, authorities];
        flags.iter().zip(paths).flat_map(|(flag, path)| [(*flag).to_owned(), text(path)]).collect()
    }

    /// Somebody who shows a certificate of `authority`, or none.
    fn caller(&self, name: &str, shown: Option<(&Authority, Validity)>) -> Dialer {
        let issued = shown.map(|(authority, validity)| authority.issue(&["caller.test"], validity));
        let files = self.files().client(name, &self.authority, issued.as_ref());
        Dialer::secured(Arc::new(Client::load(files).unwrap()), None).unwrap()
    }

    /// A new key, and its entry in the file of keys.
    fn key(&mut self, name: &str, rights: &str) -> String {
        let key = secret::generate();
        let sha256 = Fingerprint::of(key.as_bytes());
        let entry = format!("[[key]]\nid = \"{name}\"\nsha256 = \"{sha256}\"\nrights = {rights}\n");
        let path = self.directory.path().join("keys.toml");
        fs::write(&path, fs::read_to_string(&path).unwrap_or_default() + &entry).unwrap();
        self.secrets.push(key.clone());
        key
    }
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

fn signed<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

fn question() -> EmbedRequest {
    EmbedRequest { model: "m".to_owned(), inputs: vec![TEXT.to_owned()], ..EmbedRequest::default() }
}

async fn connect(gateway: &Process, dialer: &Dialer) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    dialer.connect(&endpoint).await.map_err(|error| Status::from_error(error.into()))
}

async fn ask(
    gateway: &Process,
    dialer: &Dialer,
    request: Request<EmbedRequest>,
) -> Result<EmbedResponse, Status> {
    let channel = connect(gateway, dialer).await?;
    Ok(EmbeddingsClient::new(channel).embed(request).await?.into_inner())
}

/// Waits until `process` has counted at least `least` of what `counter`, with its labels, counts; clients may try more
/// than once.
async fn until_counted(process: &Process, counter: &str, least: u64) {
    let begun = Instant::now();
    loop {
        let page = process.page("/metrics").await;
        let count = page.lines().find_map(|line| line.strip_prefix(counter)?.strip_prefix(' '));
        if count.is_some_and(|count| count.parse::<u64>().unwrap() >= least) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{counter} is not {least} in {page}");
        time::sleep(Duration::from_millis(50)).await;
    }
}

/// The counter of what a service refuses as `what` for `reason`.
fn refusals(service: &str, what: &str, reason: &str) -> String {
    format!(r#"beige_{service}_{what}_total{{reason="{reason}"}}"#)
}

/// The fields that a refusal names.
fn fields(status: &Status) -> Vec<String> {
    let bad = status.get_details_bad_request().into_iter();
    bad.flat_map(|bad| bad.field_violations).map(|violation| violation.field).collect()
}

/// Begins to publish one file, and sends `data` as its bytes.
async fn publish(channel: Channel, key: &str, file: CheckpointFile, data: &[u8]) -> Status {
    let chunk = PublishChunk { sha256: file.sha256.clone(), offset: 0, data: data.to_vec() };
    let begin = PublishBegin { model: "m".to_owned(), files: vec![file], ..PublishBegin::default() };
    let steps = [Step::Begin(begin), Step::Chunk(chunk)].map(|step| PublishRequest { step: Some(step) });
    let requests = tokio_stream::iter(steps);
    let answers = ModelsClient::new(channel).publish(signed(requests, key)).await;
    let mut answers = match answers {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status,
    };
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it was published"),
            Err(status) => return status,
        }
    }
}

/// A gateway and a worker that know each other by their certificates, and callers by certificates and keys.
async fn start(office: &mut Office) -> Cluster {
    let tls = ["--tls-cert", "--tls-key", "--tls-client-ca"];
    let worker = office.identity("worker", tls);
    let mut gateway = office.identity("gateway", tls);
    gateway.extend(office.identity("towards-workers", ["--worker-cert", "--worker-key", "--worker-ca"]));
    gateway.extend(["--keys".to_owned(), text(office.directory.path().join("keys.toml"))]);
    let plan =
        Plan { gateways: 0, store: true, gateway_flags: gateway, worker_flags: worker, ..Plan::default() };
    let mut cluster = Cluster::of(plan).await;
    let endpoint = cluster.etcd.endpoint();
    cluster.worker_through(&endpoint, &[format!("m={}", checkpoint("bert-cls"))], &[]).await;
    let gateway = cluster.another_gateway(&[]).await;
    cluster.gateways.push(gateway);
    cluster
}

/// Who has no certificate that counts gets into no process, whatever the key, and each process counts why.
async fn strangers_are_not_let_in(office: &Office, cluster: &Cluster, key: &str) {
    let others = Authority::named("others");
    let strangers = [
        (office.caller("nobody", None), "no_certificate"),
        (office.caller("late", Some((&office.authority, Validity::Past))), "expired"),
        (office.caller("other", Some((&others, Validity::Lasting))), "unknown_authority"),
        (Dialer::default(), "plaintext"),
    ];
    for (process, service) in [(&cluster.gateways[0], "gateway"), (&cluster.workers[0], "worker")] {
        for (dialer, reason) in &strangers {
            // A worker would not know what to answer; what it counts is that the connection was not let in.
            ask(process, dialer, signed(question(), key)).await.unwrap_err();
            until_counted(process, &refusals(service, "connections_refused", reason), 1).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_is_told_why_and_counted_and_no_secret_is_logged() {
    let mut office = Office::open();
    let (search, ops) = (office.key("search", r#"["embed"]"#), office.key("ops", r#"["models.write"]"#));
    let cluster = start(&mut office).await;
    let gateway = &cluster.gateways[0];
    let ours = office.caller("ours", Some((&office.authority, Validity::Lasting)));

    let begun = Instant::now();
    while let Err(status) = ask(gateway, &ours, signed(question(), &search)).await {
        assert!(begun.elapsed() < PATIENCE, "{status:?}");
        time::sleep(Duration::from_millis(50)).await;
    }

    // Keys.
    let stranger = secret::generate();
    let channel = connect(gateway, &ours).await.unwrap();
    let models = ModelsClient::new(channel.clone()).list(signed(ListModelsRequest {}, &search)).await;
    for (status, code, reason) in [
        (ask(gateway, &ours, Request::new(question())).await.unwrap_err(), Code::Unauthenticated, "missing"),
        (
            ask(gateway, &ours, signed(question(), &stranger)).await.unwrap_err(),
            Code::Unauthenticated,
            "unknown",
        ),
        (models.unwrap_err(), Code::PermissionDenied, "denied"),
    ] {
        assert_eq!(status.code(), code, "{status:?}");
        until_counted(gateway, &refusals("gateway", "unauthorized", reason), 1).await;
    }

    strangers_are_not_let_in(&office, &cluster, &search).await;

    // What is sent.
    let file = |path: &str, bytes: &[u8]| CheckpointFile {
        path: path.to_owned(),
        size: bytes.len() as u64,
        sha256: manifest::hash_read(bytes, |_| Ok(())).unwrap().1,
    };
    let climbing = publish(channel.clone(), &ops, file("../config.json", b"{}"), b"{}").await;
    let field = "begin.files[0].path".to_owned();
    assert_eq!((climbing.code(), fields(&climbing)), (Code::InvalidArgument, vec![field]));
    assert!(climbing.message().contains("not a plain path"), "{climbing:?}");
    let other = publish(channel, &ops, file("config.json", b"{}"), b"[]").await;
    assert_eq!((other.code(), fields(&other)), (Code::InvalidArgument, vec!["chunk.data".to_owned()]));
    let counter = r#"beige_gateway_requests_total{method="beige.v1.Models/Publish",code="INVALID_ARGUMENT"}"#;
    until_counted(gateway, counter, 2).await;
    let mut large = signed(question(), &search);
    large.metadata_mut().insert("x-more", "x".repeat(20 << 10).parse().unwrap());
    let large = ask(gateway, &ours, large).await.unwrap_err();
    assert_eq!((large.code(), fields(&large)), (Code::InvalidArgument, vec!["metadata".to_owned()]));
    until_counted(gateway, &refusals("gateway", "refused", "headers"), 1).await;

    // Neighbours did not notice, and nobody tells.
    ask(gateway, &ours, signed(question(), &search)).await.unwrap();
    for process in [gateway, &cluster.workers[0]] {
        let log = process.log();
        let secrets = office.secrets.iter().chain([&stranger]).map(String::as_str).chain([TEXT]);
        let told = secrets.filter(|secret| log.contains(secret)).count();
        assert_eq!(told, 0, "{} tells a secret", process.name);
    }
}
