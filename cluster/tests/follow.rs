//! Following a scripted directory, in time that is paused: outages, compactions, silence, and lists not believed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::{Alias, Directory, Follow, Freshness, Pace, Sight, View, Worker, WorkerId, follow};
use tokio::sync::{mpsc, watch};
use tokio::time::{self, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

#[derive(Debug, thiserror::Error)]
#[error("as the script says")]
struct Broken;

/// Answers lists from its script, the last one for ever, and tells of changes when the test says so.
struct Script {
    lists: VecDeque<Result<View, Broken>>,
    changes: mpsc::Receiver<Result<(), Broken>>,
    listed: Arc<Mutex<Vec<Instant>>>,
    /// What it was asked to say again.
    mended: Arc<Mutex<Vec<(String, u64)>>>,
}

impl Directory for Script {
    type Error = Broken;

    async fn list(&mut self) -> Result<View, Broken> {
        self.listed.lock().unwrap().push(Instant::now());
        match self.lists.len() {
            1 => self.lists[0].as_ref().map(View::clone).map_err(|_| Broken),
            _ => self.lists.pop_front().unwrap(),
        }
    }

    async fn mend(&mut self, view: &View) -> Result<(), Broken> {
        let names = view.overtaken.keys().map(|name| (name.clone(), view.aliases[name].epoch));
        self.mended.lock().unwrap().extend(names);
        Ok(())
    }

    async fn changed(&mut self) -> Result<(), Broken> {
        match self.changes.recv().await {
            Some(change) => change,
            None => std::future::pending().await,
        }
    }
}

/// A follower of a script, and what the test holds on to.
struct Play {
    views: watch::Receiver<Arc<View>>,
    sight: watch::Receiver<Sight>,
    answering: watch::Sender<bool>,
    changes: mpsc::Sender<Result<(), Broken>>,
    listed: Arc<Mutex<Vec<Instant>>>,
    mended: Arc<Mutex<Vec<(String, u64)>>>,
    tasks: TaskTracker,
    stop: DropGuard,
}

/// Starts following `lists`. All workers answer until the test says otherwise.
fn play(lists: impl IntoIterator<Item = Result<View, Broken>>) -> Play {
    let (changes, told) = mpsc::channel(16);
    let (listed, mended) = (Arc::default(), Arc::default());
    let lists = lists.into_iter().collect();
    let script = Script { lists, changes: told, listed: Arc::clone(&listed), mended: Arc::clone(&mended) };
    let (tell_views, views) = watch::channel(Arc::default());
    let (tell_sight, sight) = watch::channel(Sight::default());
    let (answering, answers) = watch::channel(true);
    let still_answers = move |_: &WorkerId| *answers.borrow();
    let options = Follow { pace: Pace::default(), still_answers, sight: tell_sight };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(follow(script, tell_views, options, stop.clone()));
    Play { views, sight, answering, changes, listed, mended, tasks, stop: stop.drop_guard() }
}

impl Play {
    async fn tell(&self, change: Result<(), Broken>) {
        self.changes.send(change).await.unwrap();
    }

    /// Lets time pass; paused time moves when everybody waits.
    async fn pass(&self, duration: Duration) {
        time::sleep(duration).await;
    }

    fn lists(&self) -> usize {
        self.listed.lock().unwrap().len()
    }

    #[track_caller]
    fn shows(&self, workers: &[&str], freshness: Freshness) {
        let view = self.views.borrow().clone();
        let shown: Vec<&str> = view.workers.keys().map(WorkerId::as_str).collect();
        assert_eq!((shown.as_slice(), self.sight.borrow().freshness), (workers, freshness));
    }
}

fn view(workers: &[&str]) -> View {
    let worker = |text: &&str| {
        let id = WorkerId::parse(*text).unwrap();
        let (address, boot_id, device) = (format!("{text}:7001"), "boot".to_owned(), "cpu".to_owned());
        (id.clone(), Worker { id, address, boot_id, device, memory: 1, draining: false, serves: None })
    };
    View { workers: workers.iter().map(worker).collect(), ..View::default() }
}

const MOMENT: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn news_is_listed_and_published() {
    let play = play([Ok(view(&["a"])), Ok(view(&["a", "b"]))]);
    play.shows(&[], Freshness::Unseen);
    play.pass(MOMENT).await;
    play.shows(&["a"], Freshness::Current);
    play.tell(Ok(())).await;
    play.pass(MOMENT).await;
    play.shows(&["a", "b"], Freshness::Current);
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_the_last_view() {
    let outage = (0..50).map(|_| Err(Broken));
    let lists = [Ok(view(&["a", "b"]))].into_iter().chain(outage).chain([Ok(view(&["a", "c"]))]);
    let play = play(lists);
    play.pass(MOMENT).await;
    play.answering.send_replace(false);
    play.tell(Err(Broken)).await;
    let mut views = play.views.clone();
    views.mark_unchanged();
    while play.lists() <= 50 {
        play.shows(&["a", "b"], play.sight.borrow().freshness);
        assert!(!views.has_changed().unwrap());
        play.pass(MOMENT).await;
        if play.lists() > 1 && play.lists() <= 50 {
            assert_eq!(play.sight.borrow().freshness, Freshness::Stale);
        }
    }
    play.pass(SECOND * 5).await;
    play.shows(&["a", "c"], Freshness::Current);
}

#[tokio::test(start_paused = true)]
async fn an_outage_from_the_start_is_no_empty_cluster() {
    let play = play([Err(Broken)]);
    play.pass(SECOND * 60).await;
    play.shows(&[], Freshness::Unseen);
}

#[tokio::test(start_paused = true)]
async fn a_compaction_lists_again() {
    let play = play([Ok(view(&["a"])), Ok(view(&["a", "b"]))]);
    play.pass(MOMENT).await;
    play.tell(Err(Broken)).await;
    play.pass(MOMENT * 2).await;
    play.shows(&["a", "b"], Freshness::Current);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_minute_lists_again() {
    let play = play([Ok(view(&["a"])), Ok(view(&["a", "lost-by-the-watch"]))]);
    play.pass(SECOND * 59).await;
    play.shows(&["a"], Freshness::Current);
    assert_eq!(play.lists(), 1);
    play.pass(SECOND * 2).await;
    play.shows(&["a", "lost-by-the-watch"], Freshness::Current);
    play.pass(SECOND * 600).await;
    assert_eq!(play.lists(), 12, "one a minute");
}

#[tokio::test(start_paused = true)]
async fn tries_grow_rare_in_an_outage_and_frequent_after_it() {
    let play = play([Err(Broken)]);
    play.pass(SECOND).await;
    assert!((4..=10).contains(&play.lists()), "quick at first: {}", play.lists());
    play.pass(SECOND * 600).await;
    assert!((120..=270).contains(&play.lists()), "every 2.5 to 5 seconds later: {}", play.lists());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_each_time_does_not_make_it_spin() {
    let play = play([Ok(view(&["a"]))]);
    for _ in 0..16 {
        play.tell(Err(Broken)).await;
    }
    play.pass(SECOND).await;
    assert!((4..=10).contains(&play.lists()), "{}", play.lists());
}

#[tokio::test(start_paused = true)]
async fn a_list_without_most_of_those_who_answer_is_not_applied() {
    let play = play([Ok(view(&["a", "b", "c"])), Ok(view(&["c"]))]);
    play.pass(MOMENT).await;
    play.tell(Ok(())).await;
    play.pass(SECOND * 30).await;
    play.shows(&["a", "b", "c"], Freshness::Doubted);
    let refusals = play.sight.borrow().refusals;
    assert!(refusals > 3, "asked for again before the minute is over: {refusals}");

    // They do not answer any more, so the list was right.
    play.answering.send_replace(false);
    play.pass(SECOND * 5).await;
    play.shows(&["c"], Freshness::Current);
}

#[tokio::test(start_paused = true)]
async fn doubt_outlasts_an_outage_and_ends_with_a_better_list() {
    let lists = [Ok(view(&["a", "b"])), Ok(view(&[])), Err(Broken), Err(Broken), Ok(view(&["a", "b", "c"]))];
    let play = play(lists);
    play.pass(MOMENT).await;
    play.tell(Ok(())).await;
    let mut sight = play.sight.clone();
    sight.wait_for(|sight| sight.freshness == Freshness::Doubted).await.unwrap();
    while play.lists() < 4 {
        play.shows(&["a", "b"], Freshness::Doubted);
        play.pass(MOMENT / 10).await;
    }
    play.pass(SECOND * 5).await;
    play.shows(&["a", "b", "c"], Freshness::Current);
    assert_eq!(play.sight.borrow().refusals, 1);
}

/// A view of `workers` in which `m` means `digest` at `epoch`.
fn named(workers: &[&str], digest: &str, epoch: u64) -> View {
    let aliases = [("m".to_owned(), Alias::of(digest, epoch))].into();
    View { aliases, ..view(workers) }
}

#[tokio::test(start_paused = true)]
async fn a_name_does_not_go_back_and_the_rest_of_the_list_is_applied() {
    for (back, is) in [
        ("an earlier epoch", named(&["a", "b"], "old", 4)),
        ("no epoch", view(&["a", "b"])),
        ("another meaning of the epoch", named(&["a", "b"], "other", 5)),
    ] {
        let play = play([Ok(named(&["a"], "new", 5)), Ok(is), Ok(named(&["a", "b"], "new", 6))]);
        play.pass(MOMENT).await;
        play.shows(&["a"], Freshness::Current);
        play.tell(Ok(())).await;
        play.pass(MOMENT / 2).await;
        play.shows(&["a", "b"], Freshness::Doubted);
        assert_eq!(play.views.borrow().aliases["m"], Alias::of("new", 5), "{back}");
        assert_eq!(*play.mended.lock().unwrap(), [("m".to_owned(), 5)], "{back}");
        // It does not wait for the minute to pass.
        play.pass(SECOND).await;
        play.shows(&["a", "b"], Freshness::Current);
        assert_eq!(play.views.borrow().aliases["m"], Alias::of("new", 6));
        assert_eq!(play.sight.borrow().refusals, 1, "{back}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_equal_list_wakes_nobody() {
    let play = play([Ok(view(&["a"]))]);
    play.pass(MOMENT).await;
    let mut views = play.views.clone();
    views.mark_unchanged();
    play.pass(SECOND * 300).await;
    assert!(play.lists() > 4);
    assert!(!views.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn stop_ends_it_in_any_state() {
    for lists in [[Ok(view(&["a"]))], [Err(Broken)]] {
        let Play { views, tasks, stop, .. } = play(lists);
        time::sleep(MOMENT).await;
        drop(stop);
        tasks.close();
        time::timeout(MOMENT, tasks.wait()).await.expect("ends at once");
        assert!(views.has_changed().is_err(), "the sender is gone");
    }
}
