//! Jobs: submitted once, run by one trainer at a time, given up, cancelled, lost and found.

use cluster::{
    Gateway, GatewayId, Job, JobCurve, JobFence, JobProgress, JobState, JobStep, LeaseId, ListedJob,
    Submitted, Trainer, TrainerId, TrainerPlace,
};

use super::*;

/// A trainer that lives, and the lease that it claims under.
struct Hired {
    place: TrainerPlace,
    lease: LeaseId,
}

impl Hired {
    async fn hire(etcd: &Etcd, text: &str, ttl: Duration) -> Self {
        let id = TrainerId::parse(text).unwrap();
        let options = MembershipOptions { ttl };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let place = TrainerPlace::join(etcd.clone(), (id, &trainer(text)), options, &tasks, stop);
        let lease = until(place.lease(), Option::is_some).await.unwrap();
        Self { place, lease }
    }

    async fn claims(&self, etcd: &Etcd, found: &ListedJob) -> Option<JobFence> {
        let job =
            Job { state: JobState::Running, trainer: Some(self.place.id().clone()), ..found.job.clone() };
        etcd.claim_job(found, &job, (self.place.id(), self.lease)).await.unwrap()
    }
}

/// A lease that no noise can cost anybody.
const LONG: Duration = Duration::from_secs(300);

fn trainer(text: &str) -> Trainer {
    Trainer { address: format!("{text}:7001"), devices: vec!["cpu".into(); 2] }
}

fn job(spec: &str) -> Job {
    Job { spec: spec.into(), ranks: 2, submitted_unix_ms: 7, ..Job::default() }
}

async fn submitted(etcd: &Etcd, text: &str) -> ListedJob {
    match etcd.submit_job(&name(text), &job("kind: embedder")).await.unwrap() {
        Submitted::New(found) => *found,
        Submitted::Known(found) => panic!("it was there before: {found:?}"),
    }
}

async fn read(etcd: &Etcd, text: &str) -> ListedJob {
    etcd.job(&name(text)).await.unwrap().unwrap()
}

fn progress(step: u64) -> JobProgress {
    JobProgress { last: JobStep { step, ..JobStep::default() }, steps: 9, ..JobProgress::default() }
}

/// Waits until a job is as `is_so` has it.
async fn becomes(etcd: &Etcd, text: &str, is_so: impl Fn(&ListedJob) -> bool) -> ListedJob {
    let look = async {
        loop {
            let found = read(etcd, text).await;
            if is_so(&found) {
                return found;
            }
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(PATIENCE, look).await.unwrap()
}

#[tokio::test]
async fn a_name_is_submitted_once() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let first = submitted(&etcd, "j").await;
    assert_eq!((&first.job, first.owner.clone(), first.cancelled), (&job("kind: embedder"), None, false));
    let again = etcd.submit_job(&name("j"), &job("kind: reranker")).await.unwrap();
    assert_eq!(again, Submitted::Known(Box::new(first.clone())), "what was there stays");
    submitted(&etcd, "i").await;
    let listed: Vec<_> = etcd.jobs().await.unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(listed, [name("i"), name("j")]);
    assert_eq!(read(&etcd, "j").await, first);
    assert_eq!(etcd.job(&name("k")).await.unwrap(), None);
}

#[tokio::test]
async fn of_two_trainers_one_has_the_job() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let (one, two) = tokio::join!(Hired::hire(&etcd, "t1", LONG), Hired::hire(&etcd, "t2", LONG));
    for round in 0..10 {
        let text = format!("j{round}");
        let found = submitted(&etcd, &text).await;
        let claims = tokio::join!(one.claims(&etcd, &found), two.claims(&etcd, &found));
        let owner = match claims {
            (Some(_), None) => one.place.id(),
            (None, Some(_)) => two.place.id(),
            (first, second) => panic!("{first:?}, {second:?}"),
        };
        let now = read(&etcd, &text).await;
        assert_eq!((now.owner.as_ref(), now.job.trainer.as_ref()), (Some(owner), Some(owner)));
        // Neither what was read before nor what is read now can be claimed.
        for seen in [&found, &now] {
            assert_eq!(one.claims(&etcd, seen).await, None);
        }
    }
}

#[tokio::test]
async fn nobody_claims_who_is_no_trainer() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let gone = Hired::hire(&etcd, "t1", LONG).await;
    let (id, lease) = (gone.place.id().clone(), gone.lease);
    gone.place.leave().await;
    let found = submitted(&etcd, "j").await;
    let claimed = etcd.claim_job(&found, &found.job, (&id, lease)).await;
    assert!(!matches!(claimed, Ok(Some(_))), "{claimed:?}");
    assert_eq!(read(&etcd, "j").await, found);
}

#[tokio::test]
async fn what_a_replaced_owner_writes_changes_nothing() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let (one, two) = tokio::join!(Hired::hire(&etcd, "t1", LONG), Hired::hire(&etcd, "t2", LONG));
    let found = submitted(&etcd, "j").await;
    let former = one.claims(&etcd, &found).await.unwrap();
    let curve = |step| JobCurve { points: vec![JobStep { step, ..JobStep::default() }] };
    assert!(etcd.write_progress(&former, &progress(3), Some(&curve(3))).await.unwrap());
    assert!(etcd.release_job(&former, &found.job).await.unwrap());
    let owner = two.claims(&etcd, &read(&etcd, "j").await).await.unwrap();
    let before = read(&etcd, "j").await;
    assert_eq!(before.owner.as_ref(), Some(two.place.id()));

    let late = Job { reason: "late".into(), state: JobState::Failed, ..before.job.clone() };
    assert!(!etcd.write_job(&former, &late).await.unwrap());
    assert!(!etcd.release_job(&former, &late).await.unwrap());
    assert!(!etcd.write_progress(&former, &progress(9), Some(&curve(9))).await.unwrap());
    assert_eq!(read(&etcd, "j").await, before);
    assert_eq!(etcd.job_curve(&name("j")).await.unwrap(), curve(3));

    let now = Job { attempt: 2, ..before.job };
    assert!(etcd.write_job(&owner, &now).await.unwrap());
    assert!(etcd.write_progress(&owner, &progress(4), None).await.unwrap());
    let found = read(&etcd, "j").await;
    assert_eq!((found.job, found.progress), (now, Some(progress(4))));
    assert_eq!(etcd.job_curve(&name("j")).await.unwrap(), curve(3), "without a curve it stays");
}

#[tokio::test]
async fn a_job_that_is_given_up_is_free() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let one = Hired::hire(&etcd, "t1", LONG).await;
    let fence = one.claims(&etcd, &submitted(&etcd, "j").await).await.unwrap();
    assert!(etcd.release_job(&fence, &Job { attempt: 1, ..job("s") }).await.unwrap());
    let found = read(&etcd, "j").await;
    assert_eq!((found.owner.clone(), found.job.attempt), (None, 1));
    assert!(!etcd.release_job(&fence, &job("s")).await.unwrap(), "once");
    assert!(one.claims(&etcd, &found).await.is_some());
}

#[tokio::test]
async fn a_job_is_cancelled_in_each_state() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let one = Hired::hire(&etcd, "t1", LONG).await;
    let cancel = async |text: &str| etcd.cancel_job(&name(text)).await.unwrap();
    assert_eq!(cancel("nothing").await, None);

    // Nobody runs it: it ends at once, and nobody can begin it.
    let queued = submitted(&etcd, "queued").await;
    let ended = cancel("queued").await.unwrap();
    assert_eq!((ended.job.state, ended.cancelled), (JobState::Cancelled, false));
    assert!(ended.job.ended_unix_ms > 0 && ended.job.events.len() == 1, "{ended:?}");
    assert_eq!(one.claims(&etcd, &queued).await, None);
    assert_eq!(cancel("queued").await.unwrap(), ended, "once");

    // Its owner ends it, whatever it writes in between.
    let fence = one.claims(&etcd, &submitted(&etcd, "owned").await).await.unwrap();
    let wished = cancel("owned").await.unwrap();
    assert_eq!((wished.job.state, wished.cancelled), (JobState::Running, true));
    assert_eq!(cancel("owned").await.unwrap(), wished, "once");
    assert!(etcd.write_job(&fence, &Job { attempt: 5, ..wished.job.clone() }).await.unwrap());
    assert!(read(&etcd, "owned").await.cancelled, "the wish is not lost under what the owner writes");
    assert!(etcd.release_job(&fence, &wished.job).await.unwrap());
    let free = read(&etcd, "owned").await;
    assert!(free.cancelled && free.owner.is_none(), "nor where it is given up");
    let fence = one.claims(&etcd, &free).await.unwrap();
    let done = Job { state: JobState::Cancelled, ..wished.job };
    assert!(etcd.release_job(&fence, &done).await.unwrap());
    assert!(!read(&etcd, "owned").await.cancelled, "nothing is left of it in the end");

    // What has ended stays as it is.
    let fence = one.claims(&etcd, &submitted(&etcd, "ended").await).await.unwrap();
    let done = Job { state: JobState::Succeeded, ..job("s") };
    assert!(etcd.release_job(&fence, &done).await.unwrap());
    let found = cancel("ended").await.unwrap();
    assert_eq!((found.job, found.cancelled), (done, false));
}

#[tokio::test]
async fn a_lost_lease_frees_the_job() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let (one, two) = tokio::join!(Hired::hire(&etcd, "t1", TTL), Hired::hire(&etcd, "t2", LONG));
    let leases = one.place.lease();
    let former = one.claims(&etcd, &submitted(&etcd, "j").await).await.unwrap();
    let mut client = client(&server).await;
    let lost = lease_of(&mut client, "/beige/test/jobs/j/owner").await;
    assert_eq!(lost, lease_of(&mut client, "/beige/test/trainers/t1").await);
    client.lease_client().revoke(lost).await.unwrap();

    let found = becomes(&etcd, "j", |found| found.owner.is_none()).await;
    assert_eq!(found.job.state, JobState::Running, "what is known of it stays");
    assert!(!etcd.write_job(&former, &job("late")).await.unwrap());
    // It hears of it, and that it lives under another lease.
    until(leases, |lease| lease.is_some_and(|lease| lease != one.lease)).await;
    assert!(two.claims(&etcd, &found).await.is_some());
}

#[tokio::test]
async fn trainers_and_gateways_are_listed() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    assert!(etcd.trainers().await.unwrap().is_empty() && etcd.gateways().await.unwrap().is_empty());
    let (one, _two) = tokio::join!(Hired::hire(&etcd, "t1", LONG), Hired::hire(&etcd, "t2", LONG));
    let listed = |texts: &[&str]| -> Vec<_> {
        texts.iter().map(|text| (TrainerId::parse(*text).unwrap(), trainer(text))).collect()
    };
    assert_eq!(etcd.trainers().await.unwrap(), listed(&["t1", "t2"]));
    one.place.leave().await;
    assert_eq!(etcd.trainers().await.unwrap(), listed(&["t2"]));

    let mut client = client(&server).await;
    client.put("/beige/test/gateways/g1", r#"{"v": 1, "address": "g1:8080"}"#, None).await.unwrap();
    for unreadable in ["gateways/g2", "trainers/t3"] {
        client.put(format!("/beige/test/{unreadable}"), "{", None).await.unwrap();
    }
    let gateway = Gateway { address: "g1:8080".into(), ..Gateway::default() };
    assert_eq!(etcd.gateways().await.unwrap(), [(GatewayId::parse("g1").unwrap(), gateway)]);
    assert_eq!(etcd.trainers().await.unwrap(), listed(&["t2"]));
}

#[tokio::test]
async fn a_job_that_has_ended_is_deleted_and_its_name_free() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let one = Hired::hire(&etcd, "t1", LONG).await;
    assert_eq!(etcd.delete_job(&name("j")).await.unwrap(), None);
    let found = submitted(&etcd, "j").await;
    assert_eq!(etcd.delete_job(&name("j")).await.unwrap(), Some(found.clone()), "it waits for its turn");
    let fence = one.claims(&etcd, &found).await.unwrap();
    let curve = JobCurve { points: vec![JobStep { step: 3, ..JobStep::default() }] };
    assert!(etcd.write_progress(&fence, &progress(3), Some(&curve)).await.unwrap());
    let running = read(&etcd, "j").await;
    assert_eq!(etcd.delete_job(&name("j")).await.unwrap(), Some(running.clone()), "it runs");
    assert_eq!(read(&etcd, "j").await, running);

    let done = Job { state: JobState::Succeeded, ..running.job.clone() };
    assert!(etcd.release_job(&fence, &done).await.unwrap());
    assert_eq!(etcd.delete_job(&name("j")).await.unwrap().unwrap().job, done);
    assert_eq!(etcd.job(&name("j")).await.unwrap(), None);
    assert_eq!(etcd.job_curve(&name("j")).await.unwrap(), JobCurve::default());
    let again = submitted(&etcd, "j").await;
    assert_eq!((again.job.state, again.progress), (JobState::Queued, None));
}
