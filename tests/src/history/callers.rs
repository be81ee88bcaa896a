//! Callers that never stop, and write down every answer.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto::v1::embeddings_client::EmbeddingsClient;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::ask::{self, Said};
use super::book::{Book, Question};
use super::record::{Answer, Call, Entry, Failure, Note, Record};
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

    /// Kills a gateway; those who called it call others.
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

    /// The gateway of this turn, and the epoch it must have reached: one that this caller has not been to before may
    /// be behind the last one.
    fn gateway(&self, turn: usize) -> (String, Channel, u64) {
        let gateways = self.gateways.borrow();
        let hops = self.number % 8 >= 4;
        let (name, channel) = &gateways[if hops { turn } else { self.number } % gateways.len()];
        let min_epoch = if self.before.0 == *name { 0 } else { self.before.1 };
        (name.clone(), channel.clone(), min_epoch)
    }

    async fn embed(&mut self, turn: usize) {
        let (gateway, channel, min_epoch) = self.gateway(turn);
        let texts = self.book.vectors(turn, 1 + turn * 5 % self.load.most);
        let request = ask::embedding(&self.load.model, self.texts(&texts), min_epoch);
        let sent = self.notebook.now();
        let said = ask::embed(&channel, self.sealed(request)).await;
        let questions: Vec<_> = texts.into_iter().map(Question::Vector).collect();
        self.note(Made { gateway, call: Call::Embed, pinned: sent, sent, min_epoch }, &questions, said).await;
    }

    async fn rerank(&mut self, turn: usize) {
        let (gateway, channel, min_epoch) = self.gateway(turn);
        let (query, documents) = self.book.scores(turn, 1 + turn * 3 % self.load.most);
        let texts = self.texts(&documents);
        let request = ask::ranking(&self.load.model, self.book.texts[query].clone(), texts, min_epoch);
        let sent = self.notebook.now();
        let said = ask::rerank(&channel, self.sealed(request)).await;
        let score = |document| Question::Score(query, document);
        let questions: Vec<_> = documents.into_iter().map(score).collect();
        self.note(Made { gateway, call: Call::Rerank, pinned: sent, sent, min_epoch }, &questions, said)
            .await;
    }

    /// One stream: some requests, each sent when the one before it is answered.
    async fn stream(&mut self, turn: usize) {
        let (gateway, channel, min_epoch) = self.gateway(turn);
        let (requests, taken) = mpsc::channel(1);
        let call = Call::Item(turn as u64);
        let mut client = EmbeddingsClient::new(channel);
        let mut opening = Some(client.embed_stream(self.sealed(ReceiverStream::new(taken))));
        let (mut answers, mut pinned) = (None, None);
        for step in 0..4 + turn * 7 % 24 {
            let texts = self.book.vectors(turn + step, 1 + step % self.load.most);
            let request = ask::embedding(&self.load.model, self.texts(&texts), min_epoch);
            let sent = self.notebook.now();
            let pinned = *pinned.get_or_insert(sent);
            let said = async {
                let _ = requests.send(request).await; // Refused where the stream has ended: then so do the answers.
                if let Some(opening) = opening.take() {
                    answers = Some(opening.await?.into_inner());
                }
                let answer = answers.as_mut().expect("it was opened").message().await?;
                answer.map(ask::vectors).ok_or_else(|| Status::unknown("the stream ended before its answers"))
            };
            let said = said.await;
            let over = said.is_err();
            let questions: Vec<_> = texts.into_iter().map(Question::Vector).collect();
            let made = Made { gateway: gateway.clone(), call, pinned, sent, min_epoch };
            self.note(made, &questions, said).await;
            if over {
                return;
            }
            time::sleep(self.load.rest).await;
        }
    }

    fn texts(&self, places: &[usize]) -> Vec<String> {
        places.iter().map(|&i| self.book.texts[i].clone()).collect()
    }

    fn sealed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("beige-caller", self.name.parse().unwrap());
        request.set_timeout(DEADLINE);
        request
    }

    async fn note(&mut self, made: Made, questions: &[Question], said: Result<Said, Status>) {
        let Made { gateway, call, pinned, sent, min_epoch } = made;
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
                Err(Failure { code: format!("{:?}", status.code()), message: format!("{status:?}") })
            }
        };
        let (caller, model, texts) = (self.name.clone(), self.load.model.clone(), questions.len());
        let entry = Entry { caller, gateway, model, call, pinned, sent, ended, min_epoch, texts, result };
        self.entries.push(entry);
    }
}

/// A call that was made.
struct Made {
    gateway: String,
    call: Call,
    pinned: u64,
    sent: u64,
    min_epoch: u64,
}
