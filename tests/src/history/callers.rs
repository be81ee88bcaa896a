//! Callers that never stop, and write down every answer.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::{EmbedRequest, EmbedResponse};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::ask::{self, Said};
use super::book::{Book, Question};
use super::record::{Answer, Call, Entry, Failure, Left, Note, Record};
use crate::{Process, channel};

/// A call that takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// After a call that failed, so that a record of failures stays short.
const PAUSE: Duration = Duration::from_millis(100);

/// How much is asked.
#[derive(Clone, Debug)]
pub struct Load {
    /// The model's name.
    pub model: String,
    /// How many callers, each waiting for its answer before it goes on. Of four that follow each other two embed, one
    /// has streams, one reranks; of eight the first four stay with a gateway, the others call each in turn.
    pub callers: usize,
    /// What each rests after an answer.
    pub rest: Duration,
    /// Texts of a call, at most.
    pub most: usize,
}

/// A clock, and the notes of whoever operates the cluster.
#[derive(Clone, Debug)]
pub struct Notebook {
    began: Instant,
    notes: Arc<Mutex<Vec<Note>>>,
    calls: Arc<AtomicUsize>,
}

impl Notebook {
    fn begin() -> Self {
        Self { began: Instant::now(), notes: Arc::default(), calls: Arc::default() }
    }

    /// The time of the record.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap()
    }

    /// Adds a note.
    pub fn note(&self, note: Note) {
        self.notes.lock().unwrap().push(note);
    }

    /// Calls that have ended so far.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

/// Gateways that can be called, by name.
type Gateways = Vec<(String, Channel)>;

/// Callers in a closed loop.
#[derive(Debug)]
pub struct Callers {
    /// The clock and the notes.
    pub notebook: Notebook,
    gateways: watch::Sender<Gateways>,
    stop: watch::Sender<bool>,
    set: JoinSet<Vec<Entry>>,
}

impl Callers {
    /// Starts to call `gateways`.
    pub fn start(book: &Arc<Book>, load: &Load, gateways: &[Process]) -> Self {
        let gateways = gateways.iter().map(|gateway| (gateway.name.clone(), channel(gateway))).collect();
        let (stop, stopped) = watch::channel(false);
        let (gateways, listed) = watch::channel(gateways);
        let (notebook, mut set) = (Notebook::begin(), JoinSet::new());
        for number in 0..load.callers {
            let caller = Caller {
                name: format!("caller-{number}"),
                number,
                book: Arc::clone(book),
                load: load.clone(),
                notebook: notebook.clone(),
                gateways: listed.clone(),
                before: (String::new(), 0),
                entries: Vec::new(),
            };
            set.spawn(caller.run(stopped.clone()));
        }
        Self { notebook, gateways, stop, set }
    }

    /// Calls this gateway, too.
    pub fn add(&self, gateway: &Process) {
        self.gateways.send_modify(|gateways| gateways.push((gateway.name.clone(), channel(gateway))));
    }

    /// Kills a gateway; those who called it go on at others.
    pub async fn kill(&self, gateway: &mut Process) {
        self.notebook.note(Note::Killed { at: self.notebook.now(), gateway: gateway.name.clone() });
        self.gateways.send_modify(|gateways| gateways.retain(|(name, _)| *name != gateway.name));
        gateway.kill().await;
    }

    /// Lets every caller end what it is about, and gives the record.
    pub async fn finish(self) -> Record {
        self.stop.send_replace(true);
        let entries = self.set.join_all().await.into_iter().flatten().collect();
        Record { entries, notes: self.notebook.notes.lock().unwrap().clone() }
    }
}

struct Caller {
    name: String,
    number: usize,
    book: Arc<Book>,
    load: Load,
    notebook: Notebook,
    gateways: watch::Receiver<Gateways>,
    /// The gateway that answered last, and the newest epoch of any answer.
    before: (String, u64),
    entries: Vec<Entry>,
}

impl Caller {
    async fn run(mut self, stopped: watch::Receiver<bool>) -> Vec<Entry> {
        let mut turn = self.number;
        while !*stopped.borrow() {
            match self.number % 4 {
                2 => self.stream(turn).await,
                3 => self.rerank(turn).await,
                _ => self.embed(turn).await,
            }
            turn += 1;
            time::sleep(self.load.rest).await;
        }
        self.entries
    }

    /// Where the call of this turn goes first.
    fn path(&self, turn: usize) -> Path {
        let (begun, hops) = (Instant::now(), self.number % 8 >= 4);
        let gateways = self.gateways.borrow();
        let first = &gateways[if hops { turn } else { self.number } % gateways.len()];
        Path { at: self.place(first), left: Vec::new(), sent: self.notebook.now(), begun }
    }

    /// A gateway, and the epoch it must have reached: one that this caller has not been to before may be behind the
    /// last one.
    fn place(&self, (name, channel): &(String, Channel)) -> Place {
        let min_epoch = if self.before.0 == *name { 0 } else { self.before.1 };
        Place { gateway: name.clone(), channel: channel.clone(), min_epoch }
    }

    /// Whether the call goes on at another gateway after it failed by `status`, as that of a client with several
    /// addresses: where the gateway was lost, at one that it was not to yet, in the time that is left.
    fn goes_on(&self, path: &mut Path, status: &Status) -> bool {
        let is_new =
            |name: &String| *name != path.at.gateway && path.left.iter().all(|left| left.gateway != *name);
        let gateways = self.gateways.borrow();
        let next = gateways.iter().find(|(name, _)| is_new(name)).map(|next| self.place(next));
        let Some(next) = next.filter(|_| is_lost(status) && path.begun.elapsed() < DEADLINE) else {
            return false;
        };
        let at = self.notebook.now();
        let Place { gateway, .. } = std::mem::replace(&mut path.at, next);
        path.left.push(Left { at, gateway, failure: failure(status) });
        true
    }

    /// Makes a call, at one gateway after the other until one is not lost. Answers what came, and when it was sent there.
    async fn ask<F: Future<Output = Result<Said, Status>>>(
        &self,
        path: &mut Path,
        call: impl Fn(Place, Duration) -> F,
    ) -> (u64, Result<Said, Status>) {
        loop {
            let pinned = self.notebook.now();
            match call(path.at.clone(), path.time_left()).await {
                Err(status) if self.goes_on(path, &status) => {}
                said => return (pinned, said),
            }
        }
    }

    async fn embed(&mut self, turn: usize) {
        let mut path = self.path(turn);
        let places = self.book.vectors(turn, 1 + turn * 5 % self.load.most);
        let texts = self.texts(&places);
        let call = |Place { channel, min_epoch, .. }: Place, time_left| {
            let request = ask::embedding(&self.load.model, texts.clone(), min_epoch);
            let request = self.sealed(request, time_left);
            async move { ask::embed(&channel, request).await }
        };
        let (pinned, said) = self.ask(&mut path, call).await;
        let questions: Vec<_> = places.into_iter().map(Question::Vector).collect();
        self.note(path.made(Call::Embed, pinned), &questions, said).await;
    }

    async fn rerank(&mut self, turn: usize) {
        let mut path = self.path(turn);
        let (query, documents) = self.book.scores(turn, 1 + turn * 3 % self.load.most);
        let texts = self.texts(&documents);
        let call = |Place { channel, min_epoch, .. }: Place, time_left| {
            let query = self.book.texts[query].clone();
            let request = ask::ranking(&self.load.model, query, texts.clone(), min_epoch);
            let request = self.sealed(request, time_left);
            async move { ask::rerank(&channel, request).await }
        };
        let (pinned, said) = self.ask(&mut path, call).await;
        let questions: Vec<_> =
            documents.into_iter().map(|document| Question::Score(query, document)).collect();
        self.note(path.made(Call::Rerank, pinned), &questions, said).await;
    }

    /// One stream: some requests, each sent when the one before it is answered. Where it is lost with its gateway, what
    /// was not answered is asked by another stream.
    async fn stream(&mut self, turn: usize) {
        let mut path = self.path(turn);
        let (mut stream, mut pinned) = (self.open(&path), path.sent);
        for step in 0..4 + turn * 7 % 24 {
            let places = self.book.vectors(turn + step, 1 + step % self.load.most);
            let (texts, before) = (self.texts(&places), path.left.len());
            path.sent = self.notebook.now();
            let said = loop {
                let request = ask::embedding(&self.load.model, texts.clone(), path.at.min_epoch);
                match stream.ask(request).await {
                    Err(status) if self.goes_on(&mut path, &status) => {
                        (stream, pinned) = (self.open(&path), self.notebook.now());
                    }
                    said => break said,
                }
            };
            let over = said.is_err();
            let questions: Vec<_> = places.into_iter().map(Question::Vector).collect();
            let mut made = path.made(Call::Item(turn as u64 | (path.left.len() as u64) << 32), pinned);
            made.left.drain(..before);
            self.note(made, &questions, said).await;
            if over {
                return;
            }
            time::sleep(self.load.rest).await;
        }
    }

    fn open(&self, path: &Path) -> Stream {
        let (requests, taken) = mpsc::channel(1);
        let opening = Some(self.sealed(ReceiverStream::new(taken), path.time_left()));
        Stream { client: EmbeddingsClient::new(path.at.channel.clone()), requests, opening, answers: None }
    }

    fn texts(&self, places: &[usize]) -> Vec<String> {
        places.iter().map(|&i| self.book.texts[i].clone()).collect()
    }

    fn sealed<T>(&self, message: T, time_left: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("beige-caller", self.name.parse().unwrap());
        request.set_timeout(time_left);
        request
    }

    async fn note(&mut self, made: Made, questions: &[Question], said: Result<Said, Status>) {
        let Made { at: Place { gateway, min_epoch, .. }, left, call, pinned, sent } = made;
        let ended = self.notebook.now();
        self.notebook.calls.fetch_add(1, Ordering::Relaxed);
        let result = match said {
            Ok(said) => {
                self.before = (gateway.clone(), said.epoch.max(self.before.1));
                let rows = said.rows.iter().enumerate();
                let maker = |(i, row): (usize, &Vec<f32>)| self.book.made_by(*questions.get(i)?, row);
                Ok(Answer { digest: said.digest, epoch: said.epoch, made_by: rows.map(maker).collect() })
            }
            Err(status) => {
                time::sleep(PAUSE).await;
                Err(failure(&status))
            }
        };
        let (caller, model, texts) = (self.name.clone(), self.load.model.clone(), questions.len());
        let entry =
            Entry { caller, gateway, left, model, call, pinned, sent, ended, min_epoch, texts, result };
        self.entries.push(entry);
    }
}

/// Whether it was the way to the gateway that failed, or the gateway that said so: another one may answer.
fn is_lost(status: &Status) -> bool {
    // What a gateway says comes as a status and from nothing else.
    status.code() == Code::Unavailable || status.source().is_some()
}

fn failure(status: &Status) -> Failure {
    Failure { code: format!("{:?}", status.code()), message: format!("{status:?}") }
}

/// A gateway that is called.
#[derive(Clone)]
struct Place {
    gateway: String,
    channel: Channel,
    min_epoch: u64,
}

/// The way of a call.
struct Path {
    /// Where it is now.
    at: Place,
    /// Where it was before.
    left: Vec<Left>,
    /// When it was sent first.
    sent: u64,
    /// When its deadline began.
    begun: Instant,
}

impl Path {
    fn time_left(&self) -> Duration {
        DEADLINE.saturating_sub(self.begun.elapsed())
    }

    fn made(&self, call: Call, pinned: u64) -> Made {
        Made { at: self.at.clone(), left: self.left.clone(), call, pinned, sent: self.sent }
    }
}

/// A call that was made.
struct Made {
    at: Place,
    left: Vec<Left>,
    call: Call,
    pinned: u64,
    sent: u64,
}

/// A stream at one gateway, which its first request opens.
struct Stream {
    client: EmbeddingsClient<Channel>,
    requests: mpsc::Sender<EmbedRequest>,
    opening: Option<Request<ReceiverStream<EmbedRequest>>>,
    answers: Option<Streaming<EmbedResponse>>,
}

impl Stream {
    async fn ask(&mut self, request: EmbedRequest) -> Result<Said, Status> {
        let _ = self.requests.send(request).await; // Refused where the stream has ended: then so do the answers.
        if let Some(opening) = self.opening.take() {
            self.answers = Some(self.client.embed_stream(opening).await?.into_inner());
        }
        let answer = match &mut self.answers {
            Some(answers) => answers.message().await?,
            None => None,
        };
        answer.map(ask::vectors).ok_or_else(|| Status::unavailable("the stream ended before its answers"))
    }
}
