//! Swaps, asked for and carried out.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{
    Gateway, GatewayId, Nack, NackReason, Presence, Refused, RequestError, Sample, Swap, SwapPlan,
    SwapSettings, SwapState, TrialSample, claim_alias, lead,
};

use super::versions::version;
use super::*;

/// No call of these tests lasts at all.
const SETTINGS: SwapSettings = SwapSettings { grace: Duration::ZERO };

/// A gateway that follows the cluster and stands for the lead, until dropped.
pub(super) struct Candidate {
    id: GatewayId,
    presence: Option<Presence>,
    pub(super) follower: Follower,
    stop: CancellationToken,
}

impl Candidate {
    fn start(etcd: &Etcd, text: &str) -> Self {
        Self::start_for(etcd, text, TTL)
    }

    /// The same, under a lease of `ttl`.
    pub(super) fn start_for(etcd: &Etcd, text: &str, ttl: Duration) -> Self {
        let id = GatewayId::parse(text).unwrap();
        let gateway = Gateway { address: text.into(), ..Gateway::default() };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let options = MembershipOptions { ttl };
        let presence = Presence::join(etcd.clone(), (id.clone(), &gateway), options, &tasks, stop.clone());
        let follower = watch_over(etcd, |_| true);
        let leading =
            lead(etcd.clone(), presence.candidate(), follower.views.clone(), SETTINGS, stop.clone());
        tasks.spawn(leading);
        Self { id, presence: Some(presence), follower, stop }
    }

    /// Says that it has seen `epoch` of `m`, and something new of a trial of `n`, again and again.
    async fn talk(&self, epoch: u64) {
        let mut gateway = Gateway {
            address: self.id.to_string(),
            epochs: ["m", "n"].map(|model| (model.to_owned(), epoch)).into(),
            ..Gateway::default()
        };
        loop {
            let trial = gateway
                .trials
                .entry("n".to_owned())
                .or_insert_with(|| TrialSample { swap_id: "s".into(), sample: Sample::default() });
            trial.sample.new.record(1.0, false);
            self.presence.as_ref().unwrap().update(&gateway);
            time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Says that it has seen `epoch` of `m`, and what its calls need.
    pub(super) fn say(&self, epoch: u64, busy: &[&str]) {
        let gateway = Gateway {
            address: self.id.to_string(),
            epochs: BTreeMap::from([("m".to_owned(), epoch)]),
            busy: busy.iter().map(|digest| ("m".to_owned(), (*digest).to_owned())).collect(),
            trials: BTreeMap::new(),
        };
        self.presence.as_ref().unwrap().update(&gateway);
    }

    /// Waits until the swap of `m` is in `state`.
    #[track_caller]
    pub(super) fn sees(&self, state: SwapState) -> impl Future<Output = Arc<View>> + use<> {
        let in_state = move |swap: &Swap| swap.state == state;
        until(self.follower.views.clone(), move |view| view.swaps.get("m").is_some_and(in_state))
    }

    #[track_caller]
    fn sees_leader(&self, leader: &GatewayId) -> impl Future<Output = Arc<View>> + use<> {
        let leader = leader.clone();
        until(self.follower.views.clone(), move |view| {
            view.leader.as_ref().is_some_and(|found| found.gateway == leader)
        })
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An etcd with `m` at `old`, two workers who serve that, and `new` published.
pub(super) struct Scene {
    etcd: Etcd,
    pub(super) old: String,
    pub(super) new: String,
    workers: [Membership; 2],
    pub(super) server: EtcdServer,
}

impl Scene {
    pub(super) async fn set() -> Self {
        let server = EtcdServer::start().await;
        let etcd = connect(&server);
        let [old, new] = [version(1), version(2)].map(|version| version.manifest.digest());
        let workers = ["w1", "w2"].map(|worker| join(&etcd, registration(worker, &[&old])));
        for worker in &workers {
            until(worker.registered(), |registered| *registered).await;
        }
        for published in [version(1), version(2)] {
            etcd.put_version("m", &published, None).await.unwrap();
        }
        claim_alias(&etcd, "m", &old).await.unwrap();
        Self { etcd, old, new, workers, server }
    }

    /// Both workers are ready with both.
    pub(super) fn everybody_is_ready(&self) {
        for (worker, membership) in ["w1", "w2"].iter().zip(&self.workers) {
            membership.update(registration(worker, &[&self.old, &self.new]));
        }
    }

    async fn ask(&self) -> Swap {
        self.etcd.request_swap("m", &self.new, &SwapPlan::default()).await.unwrap()
    }
}

#[tokio::test]
async fn a_swap_is_carried_out_and_the_old_checkpoint_let_go_when_nobody_needs_it() {
    let scene = Scene::set().await;
    let (g1, g2) = (Candidate::start(&scene.etcd, "g1"), Candidate::start(&scene.etcd, "g2"));
    let asked = scene.ask().await;
    assert_eq!((asked.state, asked.from.as_deref()), (SwapState::Requested, Some(scene.old.as_str())));
    let preparing = g1.sees(SwapState::Preparing).await;
    assert_eq!(preparing.swaps["m"].min_ready, 2);

    scene.everybody_is_ready();
    let committed = g1.sees(SwapState::Committed).await;
    let alias = &committed.aliases["m"];
    assert_eq!((alias.digest.as_str(), alias.epoch), (scene.new.as_str(), 2));
    assert_eq!(alias.prev.as_deref(), Some(scene.old.as_str()));
    assert_eq!(alias.swap_id.as_deref(), Some(asked.swap_id.as_str()));

    // One has seen it and has a call left, the other has not seen it.
    scene.etcd.request_retire("m", None).await.unwrap();
    g1.say(2, &[&scene.old]);
    let heard = until(g2.follower.views.clone(), {
        let id = g1.id.clone();
        move |view: &Arc<View>| view.gateways.get(&id).is_some_and(|gateway| !gateway.busy.is_empty())
    });
    assert!(heard.await.aliases["m"].prev.is_some());
    g1.say(2, &[]);
    g2.say(2, &[]);
    let retired = g2.sees(SwapState::Retired).await;
    assert_eq!(retired.aliases["m"], cluster::Alias { prev: None, ..alias.clone() });
    drop(scene.server);
}

#[tokio::test]
async fn what_is_said_of_one_model_does_not_hold_what_another_lets_go() {
    let scene = Scene::set().await;
    let (g1, g2) = (Candidate::start(&scene.etcd, "g1"), Candidate::start(&scene.etcd, "g2"));
    scene.ask().await;
    scene.everybody_is_ready();
    g1.sees(SwapState::Committed).await;
    g1.say(2, &[]);
    let retired = async {
        // The other one is heard by now, and never falls silent.
        until(g1.follower.views.clone(), |view| view.gateways.values().any(|g| !g.trials.is_empty())).await;
        scene.etcd.request_retire("m", None).await.unwrap();
        g1.sees(SwapState::Retired).await
    };
    tokio::select! {
        () = g2.talk(2) => {}
        retired = retired => assert_eq!(retired.aliases["m"].prev, None),
    }
    drop(scene.server);
}

#[tokio::test]
async fn when_the_leader_dies_another_goes_on() {
    let scene = Scene::set().await;
    let mut first = Candidate::start(&scene.etcd, "g1");
    first.sees_leader(&first.id).await;
    let second = Candidate::start(&scene.etcd, "g2");
    scene.ask().await;
    second.sees(SwapState::Preparing).await;

    drop(first.presence.take());
    scene.everybody_is_ready();
    let committed = second.sees(SwapState::Committed).await;
    assert_eq!(committed.aliases["m"].epoch, 2);
    second.sees_leader(&second.id).await;
    drop(scene.server);
}

#[tokio::test]
async fn a_rollback_needs_no_leader_and_what_it_undid_is_let_go_later() {
    let scene = Scene::set().await;
    let leader = Candidate::start(&scene.etcd, "g1");
    scene.ask().await;
    scene.everybody_is_ready();
    leader.sees(SwapState::Committed).await;
    drop(leader);

    let undone = scene.etcd.roll_back("m").await.unwrap();
    assert_eq!((undone.state, undone.epoch), (SwapState::RolledBack, 3));
    let again = scene.etcd.roll_back("m").await;
    assert!(matches!(again, Err(RequestError::Refused(Refused::NothingBefore))), "{again:?}");

    let leader = Candidate::start(&scene.etcd, "g2");
    let view = leader.sees(SwapState::RolledBack).await;
    let alias = &view.aliases["m"];
    assert_eq!((alias.digest.as_str(), alias.epoch, &alias.prev), (scene.old.as_str(), 3, &None));
    leader.say(3, &[]);
    until(leader.follower.views.clone(), |view| view.aliases["m"].leaving.is_empty()).await;
    drop(scene.server);
}

#[tokio::test]
async fn nobody_goes_back_to_what_nobody_has() {
    let scene = Scene::set().await;
    let leader = Candidate::start(&scene.etcd, "g1");
    scene.ask().await;
    scene.everybody_is_ready();
    leader.sees(SwapState::Committed).await;
    let Scene { etcd, new, workers: [first, second], server, .. } = scene;
    first.update(registration("w1", &[&new]));
    second.leave().await;
    until(leader.follower.views.clone(), |view| view.ready.len() == 1).await;
    let refused = etcd.roll_back("m").await;
    assert!(matches!(refused, Err(RequestError::Refused(Refused::NobodyReady(_)))), "{refused:?}");
    drop(server);
}

#[tokio::test]
async fn a_swap_that_workers_cannot_do_is_given_up_with_their_reasons() {
    let scene = Scene::set().await;
    let leader = Candidate::start(&scene.etcd, "g1");
    let asked = scene.ask().await;
    let nack = Nack {
        reason: NackReason::Golden,
        detail: "0.9 < 0.999".into(),
        swap_id: Some(asked.swap_id),
        boot_id: "boot of w2".into(),
        made_room: false,
    };
    scene.etcd.put_nack(("m", &scene.new), &id("w2"), &nack).await.unwrap();
    let aborted = leader.sees(SwapState::Aborted).await;
    let refusals = &aborted.swaps["m"].refusals;
    assert_eq!((refusals.len(), &refusals[0].worker, refusals[0].reason), (1, &id("w2"), NackReason::Golden));
    assert_eq!(aborted.aliases["m"], cluster::Alias::of(scene.old, 1));
    drop(scene.server);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_to_ask_twice_is_to_ask_once() {
    let scene = Scene::set().await;
    let (etcd, plan) = (&scene.etcd, SwapPlan::default());
    let refused = |outcome: Result<Swap, RequestError>| match outcome {
        Err(RequestError::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    };
    let unknown = version(9).manifest.digest();
    let found = refused(etcd.request_swap("m", &unknown, &plan).await);
    assert_eq!(found, Refused::Unpublished(unknown.clone()));
    let found = refused(etcd.request_swap("m", &scene.old, &plan).await);
    assert_eq!(found, Refused::Meant(scene.old.clone()));
    assert_eq!(refused(etcd.roll_back("m").await), Refused::NothingBefore);
    assert_eq!(refused(etcd.request_retire("m", None).await), Refused::NothingBefore);

    let elsewhere = cluster::Version { index_space: "another".into(), ..version(3) };
    etcd.put_version("m", &elsewhere, None).await.unwrap();
    let other = elsewhere.manifest.digest();
    let found = refused(etcd.request_swap("m", &other, &plan).await);
    assert!(matches!(found, Refused::OtherSpace { .. }), "{found:?}");

    let reranker = cluster::Version { kind: cluster::ModelKind::CrossEncoder, ..version(4) };
    etcd.put_version("m", &reranker, None).await.unwrap();
    let to = reranker.manifest.digest();
    let meant = SwapPlan { new_space: true, ..plan.clone() };
    let found = refused(etcd.request_swap("m", &to, &meant).await);
    assert_eq!(found, Refused::OtherKind { from: scene.old.clone(), to });

    let asked = scene.ask().await;
    assert_eq!(scene.ask().await, asked);
    let found = refused(etcd.request_swap("m", &other, &meant).await);
    assert_eq!(found, Refused::UnderWay { to: scene.new.clone() });
    assert_eq!(etcd.roll_back("m").await.unwrap().state, SwapState::Aborted);
    assert_eq!(etcd.request_swap("m", &other, &meant).await.unwrap().to, other);
}

#[tokio::test]
async fn a_version_is_forgotten_only_when_nothing_uses_it() {
    let scene = Scene::set().await;
    let etcd = &scene.etcd;
    let in_use =
        |outcome: Result<(), RequestError>| matches!(outcome, Err(RequestError::Refused(Refused::InUse(_))));
    assert!(in_use(etcd.forget_version("m", &scene.old).await), "the name means it");
    scene.ask().await;
    assert!(in_use(etcd.forget_version("m", &scene.new).await), "a swap leads to it");
    etcd.roll_back("m").await.unwrap();
    etcd.pin(("m", &scene.new), cluster::Pin { since_unix_ms: 1 }).await.unwrap();
    assert!(in_use(etcd.forget_version("m", &scene.new).await), "it is pinned");
    etcd.unpin(("m", &scene.new)).await.unwrap();

    scene.everybody_is_ready();
    let follower = watch_over(etcd, |_| true);
    until(follower.views.clone(), |view| view.ready.len() == 2).await;
    assert!(in_use(etcd.forget_version("m", &scene.new).await), "workers have it");
    for (worker, membership) in ["w1", "w2"].iter().zip(&scene.workers) {
        membership.update(registration(worker, &[&scene.old]));
    }
    until(follower.views.clone(), |view| view.ready.len() == 1).await;
    etcd.forget_version("m", &scene.new).await.unwrap();
    let known: BTreeSet<String> =
        etcd.list_versions(Some("m")).await.unwrap().into_iter().map(|listed| listed.digest).collect();
    assert_eq!(known, BTreeSet::from([scene.old.clone()]));
}

#[tokio::test]
async fn an_epoch_that_was_seen_is_put_back_into_an_etcd_that_forgot_it() {
    let scene = Scene::set().await;
    let leader = Candidate::start(&scene.etcd, "g1");
    scene.ask().await;
    scene.everybody_is_ready();
    let committed = leader.sees(SwapState::Committed).await;
    let mut client = client(&scene.server).await;
    client
        .put("/beige/test/aliases/m", format!(r#"{{"v":1,"digest":"{}","epoch":1}}"#, scene.old), None)
        .await
        .unwrap();
    let stranger = watch_over(&scene.etcd, |_| true);
    let alias = committed.aliases["m"].clone();
    until(stranger.views.clone(), move |view| view.aliases.get("m") == Some(&alias)).await;
}
