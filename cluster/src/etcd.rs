//! A connection to etcd that comes back: one call, one deadline, and another endpoint after a failure.
//!
//! The client crate balances over endpoints at random and keeps choosing dead ones. Here calls go to one endpoint
//! until it fails, then to the next over a fresh connection, so that a member that is down or hung costs one call.
//! Certificates that have changed count as a failure: whoever calls, five seconds or more after the last look at the
//! files, goes on over a connection that is made with the new ones. That is a worker at its next renewal, and a
//! gateway within a minute.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::Client;
use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::dial::{Certificates, Dial, InvalidSettings, Settings};
use crate::error::Error;
use crate::keys::{Keys, Scope};
use crate::listing::EtcdDirectory;

/// The longest that any call to etcd may take. A healthy etcd answers in milliseconds, a very slow one in a second.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Whoever calls looks for other certificates this often.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(5);

/// A connection to one cluster's part of etcd. Clones share it.
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    dial: Dial,
    keys: Keys,
    line: watch::Sender<Line>,
}

/// The endpoint in use.
#[derive(Default)]
struct Line {
    /// How often an endpoint has failed: it picks the endpoint, and tells whose failure a failure is.
    turn: usize,
    /// The connection to it, once there was a call.
    open: Option<Open>,
}

/// A connection.
#[derive(Clone)]
struct Open {
    client: Client,
    /// Those it was made with; `None` where it is in the clear.
    certificates: Option<Certificates>,
    /// When somebody last looked whether there are others.
    looked: Instant,
}

impl Etcd {
    /// A connection that is made when it is first needed: etcd may be down for now.
    ///
    /// # Errors
    /// [`InvalidSettings`] names what is wrong with `settings`.
    pub fn connect(settings: Settings) -> Result<Self, InvalidSettings> {
        let Settings { endpoints, cluster, tls } = settings;
        let dial = Dial::new(&endpoints, tls)?;
        let shared = Shared { dial, keys: Keys::new(&cluster), line: watch::Sender::default() };
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
        self.leave_outdated().await;
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
        if let Error::Unavailable { .. } | Error::Untrusted { .. } = error {
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
        (line.turn, line.open.as_ref().map(|open| open.client.clone()))
    }

    /// Leaves a connection whose certificates are not those in the files any more.
    async fn leave_outdated(&self) {
        let Some((turn, certificates)) = self.take_a_look() else { return };
        if self.shared.dial.is_outdated(&certificates).await {
            tracing::info!("certificates for etcd have changed, connecting anew");
            self.hang_up(turn);
        }
    }

    /// What to compare with the files, where it is time for that.
    fn take_a_look(&self) -> Option<(usize, Certificates)> {
        let mut found = None;
        self.shared.line.send_if_modified(|line| {
            let Some(Open { certificates: Some(certificates), looked, .. }) = &mut line.open else {
                return false;
            };
            if looked.elapsed() >= CERTIFICATES_INTERVAL {
                *looked = Instant::now();
                found = Some((line.turn, Arc::clone(certificates)));
            }
            false
        });
        found
    }

    async fn dial(&self, turn: usize) -> Result<Client, etcd_client::Error> {
        let (client, certificates) = self.shared.dial.connect(turn).await?;
        let open = Open { client: client.clone(), certificates, looked: Instant::now() };
        self.shared.line.send_if_modified(|line| {
            let is_current = line.turn == turn;
            if is_current {
                line.open = Some(open);
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
                *line = Line { turn: turn.wrapping_add(1), open: None };
            }
            is_current
        });
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { dial, keys, line: _ } = &*self.shared;
        f.debug_struct("Etcd").field("dial", dial).field("keys", keys).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;

    fn connect(endpoints: &[&str]) -> Etcd {
        let endpoints = endpoints.iter().map(ToString::to_string).collect();
        Etcd::connect(Settings { endpoints, cluster: Name::parse("c").unwrap(), tls: None }).unwrap()
    }

    #[tokio::test]
    async fn a_failure_moves_on_to_the_next_endpoint_once() {
        let etcd = connect(&["127.0.0.1:1", "127.0.0.1:2"]);
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
        let etcd = connect(&["127.0.0.1:1"]);
        let outcome = etcd.call("wait", |_| std::future::pending::<Result<(), _>>()).await;
        assert!(matches!(outcome, Err(Error::Unavailable { call: "wait", .. })), "{outcome:?}");
    }
}
