//! A connection to etcd that comes back: one call, one deadline, and another endpoint after a failure.
//!
//! The client crate balances over endpoints at random and keeps choosing dead ones. Here calls go to one endpoint
//! until it fails, then to the next over a fresh connection, so that a member that is down or hung costs one call.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use tokio::sync::watch;
use tokio::time;

use crate::error::Error;
use crate::keys::{Keys, Scope};
use crate::listing::EtcdDirectory;
use crate::name::Name;

/// The longest that any call to etcd may take. A healthy etcd answers in milliseconds, a very slow one in a second.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Within [`CALL_TIMEOUT`], so that the error says that it was the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A silent stream is probed this often: not below what etcd takes for abuse (5 s).
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// A probe unanswered for this long ends the connection, and the watch on it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the cluster's etcd is, and which cluster it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `host:port` or `http://host:port` of each member of etcd, at least one.
    pub endpoints: Vec<String>,
    /// The cluster: all its keys are under `/beige/<cluster>/`.
    pub cluster: Name,
}

/// Why [`Settings`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// There is no endpoint.
    #[error("no endpoint of etcd is given")]
    NoEndpoint,
    /// An endpoint is not `host:port` or `http://host:port`.
    #[error("the etcd endpoint {0:?} is not host:port or http://host:port")]
    Endpoint(String),
}

/// A connection to one cluster's part of etcd. Clones share it.
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    /// As URLs.
    endpoints: Vec<String>,
    keys: Keys,
    line: watch::Sender<Line>,
}

/// The endpoint in use.
#[derive(Default)]
struct Line {
    /// How often an endpoint has failed: it picks the endpoint, and tells whose failure a failure is.
    turn: usize,
    /// The connection to it, once there was a call.
    client: Option<Client>,
}

impl Etcd {
    /// A connection that is made when it is first needed: etcd may be down for now.
    ///
    /// # Errors
    /// [`InvalidSettings`] names what is wrong with `settings`.
    pub fn connect(settings: Settings) -> Result<Self, InvalidSettings> {
        let Settings { endpoints, cluster } = settings;
        if endpoints.is_empty() {
            return Err(InvalidSettings::NoEndpoint);
        }
        let endpoints = endpoints.iter().map(|text| url(text)).collect::<Result<_, _>>()?;
        let shared = Shared { endpoints, keys: Keys::new(&cluster), line: watch::Sender::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The cluster's views, for [`follow`](crate::follow).
    #[must_use]
    pub fn directory(&self) -> EtcdDirectory {
        EtcdDirectory::new(self.clone(), Scope::Everything)
    }

    /// Views with only what a worker needs to know what it is [`desired`](crate::desired) to hold: what names mean,
    /// swaps, pins and refusals. Other workers and gateways, who change all the time, are missing from them.
    #[must_use]
    pub fn wishes(&self) -> EtcdDirectory {
        EtcdDirectory::new(self.clone(), Scope::Wishes)
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// Runs one call within [`CALL_TIMEOUT`]. `call` names it for errors: a verb and its object.
    pub(crate) async fn call<T, F>(
        &self,
        call: &'static str,
        run: impl FnOnce(Client) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let (turn, known) = self.line();
        let answer = async {
            let client = match known {
                Some(client) => client,
                None => self.dial(turn).await?,
            };
            run(client).await
        };
        // Boxed, because a client is several kilobytes of clients of services.
        let outcome = match time::timeout(CALL_TIMEOUT, Box::pin(answer)).await {
            Ok(answer) => answer.map_err(|error| Error::of(call, error)),
            Err(late) => Err(Error::Unavailable { call, source: late.into() }),
        };
        outcome.map_err(|error| self.blame(turn, error))
    }

    /// Takes note of what went wrong on the line of `turn`: where there was no answer, it is left.
    pub(crate) fn blame(&self, turn: usize, error: Error) -> Error {
        if let Error::Unavailable { .. } = error {
            self.hang_up(turn);
        }
        error
    }

    /// Which line is in use, for [`left`](Self::left).
    pub(crate) fn turn(&self) -> usize {
        self.shared.line.borrow().turn
    }

    /// Waits until the line of `turn` was left: what is still open on it may be dead and look quiet. Cancel safe.
    pub(crate) async fn left(&self, turn: usize) {
        let mut lines = self.shared.line.subscribe();
        // Fails when there is no line any more, and that is never while `self` is there.
        let _ = lines.wait_for(|line| line.turn != turn).await;
    }

    fn line(&self) -> (usize, Option<Client>) {
        let line = self.shared.line.borrow();
        (line.turn, line.client.clone())
    }

    async fn dial(&self, turn: usize) -> Result<Client, etcd_client::Error> {
        let endpoint = &self.shared.endpoints[turn % self.shared.endpoints.len()];
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PROBE_INTERVAL, PROBE_TIMEOUT)
            // A member cut off from its leader says so at once, and ends its watches.
            .with_require_leader(true);
        let client = Client::connect([endpoint], Some(options)).await?;
        self.shared.line.send_if_modified(|line| {
            let is_current = line.turn == turn;
            if is_current {
                line.client = Some(client.clone());
            }
            is_current
        });
        Ok(client)
    }

    /// Leaves the endpoint of `turn`, unless a concurrent call has done so.
    fn hang_up(&self, turn: usize) {
        self.shared.line.send_if_modified(|line| {
            let is_current = line.turn == turn;
            if is_current {
                *line = Line { turn: turn.wrapping_add(1), client: None };
            }
            is_current
        });
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { endpoints, keys, line: _ } = &*self.shared;
        f.debug_struct("Etcd").field("endpoints", endpoints).field("keys", keys).finish_non_exhaustive()
    }
}

/// The URL of an endpoint. TLS is not spoken yet, so `https://` is refused rather than sent in the clear.
fn url(endpoint: &str) -> Result<String, InvalidSettings> {
    let invalid = || InvalidSettings::Endpoint(endpoint.to_owned());
    let authority = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').ok_or_else(invalid)?;
    let host_is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_[]:".contains(c);
    let port: u16 = port.parse().map_err(|_| invalid())?;
    if host.is_empty() || !host.chars().all(host_is_plain) {
        return Err(invalid());
    }
    Ok(format!("http://{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(endpoints: &[&str]) -> Result<Etcd, InvalidSettings> {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        Etcd::connect(Settings { endpoints, cluster: Name::parse("c").unwrap() })
    }

    #[test]
    fn endpoints_are_hosts_and_ports() {
        #[track_caller]
        fn check(endpoint: &str, expected: &str) {
            assert_eq!(connect(&[endpoint]).unwrap().shared.endpoints, [expected]);
        }
        check("127.0.0.1:2379", "http://127.0.0.1:2379");
        check("http://etcd-0.etcd:2379/", "http://etcd-0.etcd:2379");
        check("[::1]:2379", "http://[::1]:2379");
    }

    #[test]
    fn other_endpoints_are_refused_by_name() {
        assert_eq!(connect(&[]).unwrap_err(), InvalidSettings::NoEndpoint);
        for text in
            ["", "etcd", ":2379", "etcd:", "etcd:99999", "https://etcd:2379", "http://a b:1", "unix:///x:1"]
        {
            assert_eq!(
                connect(&["ok:1", text]).unwrap_err(),
                InvalidSettings::Endpoint(text.into()),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_failure_moves_on_to_the_next_endpoint_once() {
        let etcd = connect(&["127.0.0.1:1", "127.0.0.1:2"]).unwrap();
        let both_called = tokio::sync::Barrier::new(2);
        let fail = |_| async {
            both_called.wait().await;
            Err::<(), _>(etcd_client::Error::WatchError("broken".into()))
        };
        let both = tokio::join!(etcd.call("fail", fail), etcd.call("fail", fail));
        assert!(matches!(both, (Err(Error::Unavailable { .. }), Err(Error::Unavailable { .. }))));
        assert_eq!(etcd.line().0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends() {
        let etcd = connect(&["127.0.0.1:1"]).unwrap();
        let outcome = etcd.call("wait", |_| std::future::pending::<Result<(), _>>()).await;
        assert!(matches!(outcome, Err(Error::Unavailable { call: "wait", .. })), "{outcome:?}");
    }
}
