//! One worker as this gateway reaches it: a connection for work, another for its health, and what is outstanding.
//!
//! Health has a connection of its own, so that reports do not queue behind megabytes of vectors.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster::{Backoff, WorkerId};
use proto::worker::v1::worker_client::WorkerClient;
use proto::worker::v1::{HealthReport, HealthRequest};
use tls::Dialer;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::outlier::Record;
use crate::route::Burden;
use crate::wire::Class;

/// Workers report every 250 ms; after three that did not come the worker gets nothing new.
const SILENCE: Duration = Duration::from_millis(900);
/// After this long without a report, what it has is taken to be lost. Longer than [`SILENCE`], because a machine
/// that was busy elsewhere for a second has lost nothing, and doing its work twice would not help it.
const LOSS: Duration = Duration::from_secs(3);
/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Waits between tries to open a health stream.
const REOPEN: Backoff = Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(1) };
/// A peer that does not acknowledge a ping for this long is gone, whatever TCP thinks.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Room for vectors on their way: of one call, and of all.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// The largest answer of a worker: the tokens of a `TokenizeRequest` of the largest size.
const ANSWER_BYTES: usize = 128 << 20;
/// Header bytes a worker may send.
const HEADER_BYTES: u32 = 16 << 10;

/// What a shard takes beside the model's work, with some patience: its way there and back, and its turn.
const ON_THE_WAY: Duration = Duration::from_millis(20);
/// A speed measured over fewer tokens than this is of a warm-up, on a machine that was busy starting: it counts as
/// not measured.
const MEASURED: u64 = 8_192;

/// Where a worker is. One that moves takes another seat.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    /// Which worker.
    pub id: WorkerId,
    /// `host:port`.
    pub address: String,
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.id, self.address)
    }
}

/// What was noticed of a worker.
#[derive(Debug)]
pub enum Sign {
    /// It reported.
    Report(Box<HealthReport>),
    /// Reports are overdue.
    Silent,
    /// So long overdue that what it has is taken to be lost.
    Lost,
    /// It cannot be reached.
    Broken,
}

/// A worker's connection and load.
pub struct Link {
    /// Where it is.
    pub seat: Seat,
    /// How it does.
    pub record: Record,
    endpoint: Endpoint,
    dialer: Dialer,
    client: WorkerClient<Channel>,
    load: Load,
    latest: watch::Sender<Option<Arc<HealthReport>>>,
    lost: Notify,
}

/// Numbers that change with every shard and every report.
#[derive(Debug, Default)]
struct Load {
    /// Estimated tokens that this gateway waits for, of each class.
    interactive: AtomicU64,
    bulk: AtomicU64,
    /// Tokens there that are not ours, as of the last report.
    foreign: AtomicU64,
    /// Bits of an `f64`: tokens per second.
    speed: AtomicU64,
    /// Reports so far.
    reports: AtomicU64,
    /// Nothing new until there are this many reports: work failed at its door since the last one.
    wanted: AtomicU64,
}

impl Link {
    /// A link that connects through `dialer` when it is first used.
    ///
    /// # Errors
    /// Where the address is none.
    pub fn new(seat: Seat, dialer: &Dialer) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", seat.address))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(HEADER_BYTES);
        let client = client(dialer.lazy(&endpoint));
        let (latest, _) = watch::channel(None);
        Ok(Self {
            seat,
            record: Record::default(),
            endpoint,
            dialer: dialer.clone(),
            client,
            load: Load::default(),
            latest,
            lost: Notify::new(),
        })
    }

    /// A client of the worker. Cheap.
    #[must_use]
    pub fn client(&self) -> WorkerClient<Channel> {
        self.client.clone()
    }

    /// Counts `tokens` as outstanding until the guard is dropped.
    #[must_use]
    pub fn hold(self: &Arc<Self>, class: Class, tokens: u64) -> Held {
        self.load.own(class).fetch_add(tokens, Ordering::Relaxed);
        Held { link: Arc::clone(self), class, tokens }
    }

    /// What it has before it: ours as it is now, others' as last reported.
    #[must_use]
    pub fn burden(&self) -> Burden {
        let tokens = self.outstanding() + self.load.foreign.load(Ordering::Relaxed);
        Burden { tokens, speed: self.speed() }
    }

    /// How long a shard of `tokens` should take that is sent now; `None` while no speed is known.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn foresee(&self, tokens: u64) -> Option<Duration> {
        let burden = self.burden();
        let seconds = (burden.tokens + tokens) as f64 / burden.speed;
        let working = (burden.speed > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten();
        working.map(|working| working.saturating_add(ON_THE_WAY))
    }

    /// Tokens that will be run before a new call of `class`: only what is known to go first.
    #[must_use]
    pub fn ahead_of(&self, class: Class) -> u64 {
        match class {
            Class::Interactive => self.load.interactive.load(Ordering::Relaxed),
            Class::Bulk => self.burden().tokens,
        }
    }

    /// Tokens per second while busy; 0 until that was measured.
    #[must_use]
    pub fn speed(&self) -> f64 {
        f64::from_bits(self.load.speed.load(Ordering::Relaxed))
    }

    /// Estimated tokens that this gateway waits for there.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.load.interactive.load(Ordering::Relaxed) + self.load.bulk.load(Ordering::Relaxed)
    }

    /// Reports so far: a larger number than before means that it is alive after all.
    #[must_use]
    pub fn reports(&self) -> u64 {
        self.load.reports.load(Ordering::Relaxed)
    }

    /// The last report, if there was one.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<HealthReport>> {
        self.latest.borrow().clone()
    }

    /// Keeps new work away until the next report: its connection has just failed.
    pub fn suspect(&self) {
        self.load.wanted.store(self.reports() + 1, Ordering::Relaxed);
    }

    /// Whether its connection has not failed since its last report.
    #[must_use]
    pub fn trusted(&self) -> bool {
        self.reports() >= self.load.wanted.load(Ordering::Relaxed)
    }

    /// Takes in a report.
    pub fn heard(&self, report: Arc<HealthReport>) {
        let foreign = report.queued_tokens.saturating_sub(self.outstanding());
        self.load.foreign.store(foreign, Ordering::Relaxed);
        let speed = report.tokens_per_second;
        let measured = report.total_tokens >= MEASURED && speed.is_finite() && speed > 0.0;
        let speed = if measured { speed } else { 0.0 };
        self.load.speed.store(speed.to_bits(), Ordering::Relaxed);
        self.load.reports.fetch_add(1, Ordering::Relaxed);
        self.latest.send_replace(Some(report));
    }

    /// Gives up what was sent to it.
    pub fn give_up(&self) {
        self.lost.notify_waiters();
    }

    /// Waits until what was sent to it is given up.
    pub async fn given_up(&self) {
        self.lost.notified().await;
    }
}

impl Load {
    fn own(&self, class: Class) -> &AtomicU64 {
        match class {
            Class::Interactive => &self.interactive,
            Class::Bulk => &self.bulk,
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("seat", &self.seat).field("load", &self.load).finish_non_exhaustive()
    }
}

/// Outstanding tokens; no longer so when dropped.
#[derive(Debug)]
pub struct Held {
    link: Arc<Link>,
    class: Class,
    tokens: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.link.load.own(self.class).fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

fn client(channel: Channel) -> WorkerClient<Channel> {
    WorkerClient::new(channel).max_decoding_message_size(ANSWER_BYTES).max_encoding_message_size(usize::MAX)
}

/// Follows the health of the worker at the other end of `link`, until `stop` or until nobody takes `signs`.
pub async fn follow(link: Arc<Link>, signs: mpsc::Sender<(Seat, Sign)>, stop: CancellationToken) {
    let mut reporter = Reporter { seat: link.seat.clone(), signs, failures: 0 };
    let following = async {
        while !reporter.signs.is_closed() {
            if let Err(error) = reporter.watch(&link).await {
                tracing::debug!(worker = %link.seat, %error, "no health stream");
            }
            reporter.tell(Sign::Broken).await;
            time::sleep(REOPEN.delay(reporter.failures, rand::random())).await;
            reporter.failures = reporter.failures.saturating_add(1);
        }
    };
    stop.run_until_cancelled(following).await;
}

struct Reporter {
    seat: Seat,
    signs: mpsc::Sender<(Seat, Sign)>,
    /// Streams that ended since the last report.
    failures: u32,
}

impl Reporter {
    /// Follows one stream to its end.
    async fn watch(&mut self, link: &Link) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let opening = async {
            let channel = link.dialer.connect(&link.endpoint).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(client(channel).health(HealthRequest {}).await?)
        };
        let mut reports = time::timeout(2 * CONNECT, opening).await??.into_inner();
        while let Some(report) = self.next(&mut reports).await? {
            self.failures = 0;
            self.tell(Sign::Report(Box::new(report))).await;
        }
        Ok(())
    }

    /// The next report; `None` at the end of the stream, and where none came for so long that there is no use in
    /// waiting.
    async fn next(
        &mut self,
        reports: &mut Streaming<HealthReport>,
    ) -> Result<Option<HealthReport>, tonic::Status> {
        let since = Instant::now();
        if let Ok(report) = time::timeout_at(since + SILENCE, reports.message()).await {
            return report;
        }
        self.tell(Sign::Silent).await;
        if let Ok(report) = time::timeout_at(since + LOSS, reports.message()).await {
            return report;
        }
        self.tell(Sign::Lost).await;
        Ok(None)
    }

    async fn tell(&self, sign: Sign) {
        // Nobody listens any more only when all of it ends.
        let _ = self.signs.send((self.seat.clone(), sign)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Arc<Link> {
        let seat = Seat { id: WorkerId::parse("w1").unwrap(), address: "127.0.0.1:1".into() };
        Arc::new(Link::new(seat, &Dialer::default()).unwrap())
    }

    fn report(queued_tokens: u64, tokens_per_second: f64) -> Arc<HealthReport> {
        let total_tokens = MEASURED;
        Arc::new(HealthReport { queued_tokens, tokens_per_second, total_tokens, ..HealthReport::default() })
    }

    #[tokio::test]
    async fn ours_is_counted_now_and_others_as_reported() {
        let link = link();
        let held = link.hold(Class::Bulk, 100);
        link.heard(report(130, 50.0));
        assert_eq!(link.burden(), Burden { tokens: 130, speed: 50.0 });
        let more = link.hold(Class::Interactive, 10);
        assert_eq!(link.burden().tokens, 140);
        assert_eq!((link.ahead_of(Class::Interactive), link.ahead_of(Class::Bulk)), (10, 140));
        drop((held, more));
        assert_eq!(link.burden().tokens, 30);
        link.heard(report(0, f64::NAN));
        assert_eq!(link.burden(), Burden { tokens: 0, speed: 0.0 });
    }

    #[tokio::test]
    async fn the_speed_of_a_warm_up_is_not_believed() {
        let link = link();
        let warm_up = HealthReport { total_tokens: MEASURED - 1, ..(*report(0, 9.0)).clone() };
        link.heard(Arc::new(warm_up));
        assert_eq!(link.burden().speed.to_bits(), 0);
    }

    #[tokio::test]
    async fn a_link_that_failed_is_trusted_again_after_a_report() {
        let link = link();
        assert!(link.trusted());
        link.heard(report(0, 1.0));
        link.suspect();
        assert!(!link.trusted());
        link.heard(report(0, 1.0));
        assert!(link.trusted());
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_refused() {
        let seat = Seat { id: WorkerId::parse("w1").unwrap(), address: "no address".into() };
        assert!(Link::new(seat, &Dialer::default()).is_err());
    }
}
