//! Following the cluster: a view that is kept current while there is news, and kept at all while there is none.
//!
//! [`follow`] does not apply events. It lists, waits for a sign that something changed, and lists again: each view
//! is whole and of one revision, and a lost or doubled event can do no harm that the next list does not mend.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::accept::{Verdict, accept};
use crate::backoff::{Backoff, roll};
use crate::name::WorkerId;
use crate::view::View;

/// Where views come from: etcd in production, a script in tests.
pub trait Directory: Send + 'static {
    /// Why there is no answer.
    type Error: Error + Send + 'static;

    /// The whole current view.
    ///
    /// # Errors
    /// The directory cannot be read at present.
    fn list(&mut self) -> impl Future<Output = Result<View, Self::Error>> + Send;

    /// Makes the directory say again what it has gone back behind: the [overtaken](View::overtaken) names of `view`.
    /// May be called as often as one likes.
    ///
    /// # Errors
    /// The directory cannot be written at present.
    fn mend(&mut self, view: &View) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Waits until the view may differ from the one last listed, however long ago that was. Cancel safe.
    ///
    /// # Errors
    /// Also when history was compacted away: the caller lists again either way.
    fn changed(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// When [`follow`] does what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// List again after this long without news: a watch can lose events, and a dead one can look quiet.
    pub relist: Duration,
    /// Wait this long between news and the list, so that a fleet that joins at once is not listed for each worker.
    pub settle: Duration,
    /// Waits after failures, and between lists that are not believed.
    pub retry: Backoff,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            relist: Duration::from_secs(60),
            settle: Duration::from_millis(20),
            retry: Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(5) },
        }
    }
}

/// How well the published view is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// Nothing was listed yet: the view is empty because nobody knows better.
    #[default]
    Unseen,
    /// It is what the directory says, as far as one can tell.
    Current,
    /// The directory does not answer; the view is the last one it gave.
    Stale,
    /// The directory answers with a list that is not believed, or not in all; the view is the last one that was, at
    /// least in what it says of names. An alarm.
    Doubted,
}

/// How following goes, for readiness, metrics and alarms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// How well the view is known now.
    pub freshness: Freshness,
    /// Lists not believed, wholly or in part, since the start.
    pub refusals: u64,
}

/// What [`follow`] asks and tells beside the views.
#[derive(Debug)]
pub struct Follow<F> {
    /// When to do what.
    pub pace: Pace,
    /// Whether a worker still answers us, known without etcd: its health stream is open and does not say that it
    /// drains. A list without most of these is not believed.
    pub still_answers: F,
    /// Where to tell how it goes.
    pub sight: watch::Sender<Sight>,
}

/// Publishes views until `stop`. After a failure the last view stays published: a stale worker costs one retry, an
/// empty view costs an outage.
///
/// A list that loses more than half of the workers that still answer is not applied ([`accept`]); it is logged as
/// an error, shown as [`Freshness::Doubted`], and asked for again until it is believed or the workers are silent. So it
/// is where a name has gone back to an epoch before one that was seen: then all else is applied, the name stays as it
/// was, and the directory is [mended](Directory::mend).
pub async fn follow<D, F>(
    mut directory: D,
    views: watch::Sender<Arc<View>>,
    options: Follow<F>,
    stop: CancellationToken,
) where
    D: Directory,
    F: Fn(&WorkerId) -> bool + Send + Sync,
{
    let retry = options.pace.retry;
    let mut observer = Observer { views, options, doubts: 0 };
    let publish = async {
        let mut failures = 0;
        loop {
            match observer.round(&mut directory).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    observer.lose_sight(&error, failures);
                    time::sleep(retry.delay(failures, roll())).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    };
    stop.run_until_cancelled(publish).await;
}

/// The published view and what is thought of it.
struct Observer<F> {
    views: watch::Sender<Arc<View>>,
    options: Follow<F>,
    /// Lists refused in a row.
    doubts: u32,
}

impl<F: Fn(&WorkerId) -> bool + Send + Sync> Observer<F> {
    /// Lists, judges, and waits until there may be something new.
    async fn round<D: Directory>(&mut self, directory: &mut D) -> Result<(), D::Error> {
        let view = directory.list().await?;
        let pace = self.options.pace;
        let verdict = accept(&self.views.borrow(), &view, &self.options.still_answers);
        let patience = match verdict {
            Verdict::Apply if self.apply(view) => pace.relist,
            Verdict::Apply => {
                let view = Arc::clone(&self.views.borrow());
                directory.mend(&view).await?;
                pace.retry.delay(self.doubts - 1, roll())
            }
            Verdict::Refuse { missing, answering } => {
                self.refuse(missing, answering);
                pace.retry.delay(self.doubts - 1, roll())
            }
        };
        if let Ok(news) = time::timeout(patience, directory.changed()).await {
            news?;
            time::sleep(pace.settle).await;
        }
        Ok(())
    }

    /// Publishes what is to be believed of `view`; answers whether that is all.
    fn apply(&mut self, mut view: View) -> bool {
        view.keep_epochs(&self.views.borrow());
        let is_believed = view.overtaken.is_empty();
        if is_believed {
            self.believe();
        } else {
            let names: Vec<&String> = view.overtaken.keys().collect();
            self.doubt(|| {
                tracing::error!(
                    ?names,
                    "etcd has gone back behind epochs that were seen: keeping them; was it restored?"
                );
            });
        }
        self.views.send_if_modified(|published| {
            if **published == view {
                return false;
            }
            for change in published.diff(&view) {
                tracing::debug!(?change, "the cluster changed");
            }
            *published = Arc::new(view);
            true
        });
        is_believed
    }

    fn refuse(&mut self, missing: usize, answering: usize) {
        self.doubt(|| {
            tracing::error!(
                missing,
                answering,
                "etcd lists too few of the workers that answer: keeping the last view; was etcd wiped or restored?"
            );
        });
    }

    fn believe(&mut self) {
        self.doubts = 0;
        if matches!(self.sight(Freshness::Current), Freshness::Stale | Freshness::Doubted) {
            tracing::info!("the view of the cluster is current again");
        }
    }

    /// Counts the list, and cries out where the one before was believed.
    fn doubt(&mut self, cry: impl FnOnce()) {
        self.doubts = self.doubts.saturating_add(1);
        self.options.sight.send_modify(|sight| sight.refusals += 1);
        if self.sight(Freshness::Doubted) != Freshness::Doubted {
            cry();
        }
    }

    fn lose_sight(&self, error: &(dyn Error + 'static), failures: u32) {
        if failures == 0 {
            tracing::warn!(error, "lost sight of the cluster: keeping the last view and listing again");
        } else {
            tracing::debug!(error, failures, "still no sight of the cluster");
        }
        // Doubt is not forgotten in an outage, and who has seen nothing has nothing stale.
        if self.options.sight.borrow().freshness == Freshness::Current {
            self.sight(Freshness::Stale);
        }
    }

    /// Tells the new state; answers the old one.
    fn sight(&self, freshness: Freshness) -> Freshness {
        let mut old = freshness;
        self.options.sight.send_if_modified(|sight| {
            old = std::mem::replace(&mut sight.freshness, freshness);
            old != freshness
        });
        old
    }
}
