//! Entries of etcd under a lease, for as long as a process wants them there.
//!
//! [`Place::take`] never waits for etcd and never fails because of it: losing a key is not dying. One task does what
//! [`Tenure`] says, one call at a time; there is no second place that knows how the registration stands.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{self, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::backoff::{Backoff, roll};
use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::ledger::Entries;
use crate::tenure::{Act, Answer, Remark, Tenure};

/// How long [`Place::leave`] tries to take the entries away; after that they go with the lease.
const LEAVE_WITHIN: Duration = Duration::from_secs(4);

/// etcd counts in seconds.
const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// A place in etcd. Dropping it gives it up too, without waiting.
#[derive(Debug)]
pub(crate) struct Place {
    wanted: watch::Sender<Wanted>,
    written: watch::Receiver<u64>,
    registered: watch::Receiver<bool>,
    lease: watch::Receiver<Option<LeaseId>>,
    restored: watch::Receiver<u64>,
    leaving: DropGuard,
    gone: CancellationToken,
}

/// Entries, and how often there were others before.
#[derive(Debug)]
struct Wanted {
    version: u64,
    entries: Entries,
}

impl Place {
    /// Makes `entries`, of which `anchor` always is one, be there under a lease of `ttl`, until
    /// [`leave`](Self::leave), or until `stop`. Returns at once; the work is done by a task of `tasks`.
    pub(crate) fn take(
        etcd: Etcd,
        (anchor, entries): (Key, Entries),
        ttl: Duration,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let ttl = ttl.max(SHORTEST_TTL);
        let tenure = Tenure::new((anchor, entries.clone()), ttl, Instant::now());
        let (wanted, wishes) = watch::channel(Wanted { version: 1, entries });
        let (tell_written, written) = watch::channel(0);
        let (tell, registered) = watch::channel(false);
        let (tell_lease, lease) = watch::channel(None);
        let (tell_restored, restored) = watch::channel(0);
        let (leaving, gone) = (CancellationToken::new(), CancellationToken::new());
        let registrar = Registrar {
            etcd,
            ttl,
            wishes,
            tell_written,
            tell,
            tell_lease,
            tell_restored,
            was_failing: false,
            tenure,
        };
        tasks.spawn(registrar.run(stop, leaving.clone(), gone.clone().drop_guard()));
        Self { wanted, written, registered, lease, restored, leaving: leaving.drop_guard(), gone }
    }

    /// Other entries from now on.
    pub(crate) fn update(&self, entries: Entries) {
        self.wanted.send_if_modified(|wanted| {
            let differs = wanted.entries != entries;
            if differs {
                *wanted = Wanted { version: wanted.version + 1, entries };
            }
            differs
        });
    }

    /// Waits until etcd says what is wanted at the time of the call, and nothing else, however long that takes. True
    /// where it does; false where the place is given up.
    pub(crate) fn written(&self) -> impl Future<Output = bool> + Send + use<> {
        let (version, mut written) = (self.wanted.borrow().version, self.written.clone());
        async move { written.wait_for(|written| *written >= version).await.is_ok() }
    }

    /// Whether others can be expected to see the entries. Closed once the place is given up.
    pub(crate) fn registered(&self) -> watch::Receiver<bool> {
        self.registered.clone()
    }

    /// The lease, while others can be expected to see the entries. Closed once the place is given up.
    pub(crate) fn lease(&self) -> watch::Receiver<Option<LeaseId>> {
        self.lease.clone()
    }

    /// How often entries were found to be others than had been written, and were written again. Closed once the place is
    /// given up.
    pub(crate) fn restored(&self) -> watch::Receiver<u64> {
        self.restored.clone()
    }

    /// Gives the place up and waits until the entries are gone, but not long.
    pub(crate) async fn leave(self) {
        drop(self.leaving);
        self.gone.cancelled().await;
    }
}

/// The task behind a [`Place`].
struct Registrar {
    etcd: Etcd,
    ttl: Duration,
    wishes: watch::Receiver<Wanted>,
    tell_written: watch::Sender<u64>,
    tell: watch::Sender<bool>,
    tell_lease: watch::Sender<Option<LeaseId>>,
    tell_restored: watch::Sender<u64>,
    /// Whether the latest call had failed when that was last told.
    was_failing: bool,
    tenure: Tenure,
}

impl Registrar {
    /// Keeps the registration until `stop` or `leaving`. `_gone` tells that it is over, however it ends.
    async fn run(mut self, stop: CancellationToken, leaving: CancellationToken, _gone: DropGuard) {
        stop.run_until_cancelled(leaving.run_until_cancelled(self.keep())).await;
        self.revoke().await;
        self.tell_lease.send_replace(None);
        self.tell.send_replace(false);
    }

    /// Cancelled in any step, it leaves at worst a lease that nobody renews.
    async fn keep(&mut self) {
        loop {
            // Fails once the handle is dropped, and then `leaving` ends the task.
            if self.wishes.has_changed().unwrap_or(false) {
                self.heed();
            }
            let act = self.tenure.next(Instant::now());
            self.tell();
            match self.ask(act).await {
                Ok(None) => {}
                Ok(Some(answer)) => self.take(answer),
                Err(error) => self.fail(&error),
            }
            self.tell();
        }
    }

    /// Takes in what is wanted by now.
    fn heed(&mut self) {
        let wanted = self.wishes.borrow_and_update();
        self.tenure.want(wanted.entries.clone(), wanted.version, Instant::now());
    }

    /// Does what is to be done next; none where that was to wait.
    async fn ask(&mut self, act: Act) -> Result<Option<Answer>, Error> {
        let answer = match act {
            Act::WaitUntil(then) => {
                self.wait(then).await;
                return Ok(None);
            }
            Act::Grant => Answer::Granted(self.etcd.grant_lease(self.ttl).await?),
            Act::Renew(lease) => self.etcd.renew_lease(lease).await.map(|()| Answer::Renewed)?,
            Act::Look(anchor) => {
                let [found] = self.etcd.read("read the registration", [&anchor]).await?;
                Answer::Looked(found.map_or(0, |found| found.revision.modified))
            }
            Act::Write(transaction) => {
                Answer::Outcome(self.etcd.transact("write the registration", &transaction).await?)
            }
            Act::Check(transaction) => {
                Answer::Outcome(self.etcd.transact("check the registration", &transaction).await?)
            }
        };
        Ok(Some(answer))
    }

    async fn wait(&mut self, then: Instant) {
        tokio::select! {
            () = time::sleep_until(then) => {}
            // Cancel safe. Fails once the handle is dropped, and then `leaving` ends the task.
            Ok(()) = self.wishes.changed() => self.heed(),
        }
    }

    fn take(&mut self, answer: Answer) {
        match self.tenure.on(answer, Instant::now(), roll()) {
            Remark::Usual => {}
            Remark::Disturbed => {
                tracing::warn!("somebody had changed or removed our keys; is another process using this id?");
            }
            Remark::Contended => {
                tracing::warn!(
                    "somebody else writes our keys all the time; is another process using this id?"
                );
            }
        }
    }

    fn fail(&mut self, error: &Error) {
        let answer = if error.says_lease_is_lost() {
            tracing::warn!("the registration was lost with its lease, registering again");
            Answer::Lost
        } else {
            self.report(error);
            Answer::Failed
        };
        self.tenure.on(answer, Instant::now(), roll());
    }

    /// Tells those who wait for it how the registration stands.
    fn tell(&mut self) {
        let is_failing = self.tenure.is_failing();
        if std::mem::replace(&mut self.was_failing, is_failing) && !is_failing {
            tracing::info!("etcd takes the registration again");
        }
        let (written, restored) = (self.tenure.written(), self.tenure.restored());
        let registered = self.tenure.is_registered(Instant::now());
        let lease = self.tenure.lease().filter(|_| registered);
        self.tell_written.send_if_modified(|told| std::mem::replace(told, written) != written);
        self.tell_restored.send_if_modified(|told| std::mem::replace(told, restored) != restored);
        self.tell_lease.send_if_modified(|told| std::mem::replace(told, lease) != lease);
        self.tell.send_if_modified(|told| std::mem::replace(told, registered) != registered);
    }

    /// Once per outage aloud.
    fn report(&self, error: &(dyn std::error::Error + 'static)) {
        if self.tenure.is_failing() {
            tracing::debug!(error, "etcd still does not take the registration");
        } else {
            tracing::warn!(error, "etcd does not take the registration, trying again until it does");
        }
    }

    async fn revoke(&mut self) {
        let Some(lease) = self.tenure.lease() else { return };
        let retry = Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(1) };
        let attempts = async {
            let mut failures = 0;
            while let Err(error) = self.etcd.revoke_lease(lease).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the lease is not revoked yet");
                time::sleep(retry.delay(failures, roll())).await;
                failures += 1;
            }
        };
        if time::timeout(LEAVE_WITHIN, attempts).await.is_err() {
            tracing::warn!(ttl = ?self.ttl, "etcd does not answer: the registration goes with its lease");
        }
    }
}
