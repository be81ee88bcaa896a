//! The workers and models as calls see them: a picture that does not change; the [pool](crate::pool) makes new ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cluster::{Alias, Name, WorkerId};
use proto::worker::v1::HealthReport;

use crate::checkpoint::{Card, Digest};
use crate::departures::Departures;
use crate::link::Link;

/// How a worker stands towards this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It reports and takes work.
    Serving,
    /// It reports that it will end: it gets nothing new.
    Draining,
    /// It does not report: it gets nothing new until it does.
    Unreachable,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct Member {
    /// The way to it.
    pub link: Arc<Link>,
    /// How it stands.
    pub standing: Standing,
}

/// A checkpoint that some worker has, or had when it last reported.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it is.
    pub card: Arc<Card>,
    /// The aliases it was loaded under.
    pub names: BTreeSet<String>,
    /// Workers that take work for it now.
    pub ready: Vec<Arc<Link>>,
}

/// All workers and models at one moment.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// What each name means. `None` until the cluster was seen once.
    aliases: Option<BTreeMap<String, Alias>>,
    departures: Departures,
    members: Vec<Member>,
    known: HashMap<Digest, Known>,
    gateways: usize,
}

impl Fleet {
    /// The picture of `members` under the names of `aliases`; of a cluster not yet seen without any.
    #[must_use]
    pub fn new(aliases: Option<&BTreeMap<String, Alias>>, members: Vec<Member>) -> Self {
        let mut known = HashMap::new();
        for member in &members {
            if let Some(report) = member.link.latest() {
                note(&mut known, member, &report);
            }
        }
        let departures = Departures::default();
        Self { aliases: aliases.cloned(), departures, members, known, gateways: 0 }
    }

    /// The same, where these checkpoints are about to go.
    #[must_use]
    pub fn without(self, departures: Departures) -> Self {
        Self { departures, ..self }
    }

    /// Checkpoints that are about to go.
    #[must_use]
    pub fn departures(&self) -> &Departures {
        &self.departures
    }

    /// The same, at one of so many gateways.
    #[must_use]
    pub fn among(self, gateways: usize) -> Self {
        Self { gateways, ..self }
    }

    /// Gateways that serve the cluster, this one among them; as many as are known of.
    #[must_use]
    pub fn gateways(&self) -> usize {
        self.gateways.max(1)
    }

    /// What each name means; `None` until the cluster was seen once.
    #[must_use]
    pub fn aliases(&self) -> Option<&BTreeMap<String, Alias>> {
        self.aliases.as_ref()
    }

    /// What a name means.
    #[must_use]
    pub fn alias(&self, model: &Name) -> Option<&Alias> {
        self.aliases.as_ref()?.get(model.as_str())
    }

    /// All workers, ascending by id.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Workers that take work now, ascending by id.
    pub fn serving(&self) -> impl Iterator<Item = &Arc<Link>> {
        let serving = self.members.iter().filter(|member| member.standing == Standing::Serving);
        serving.map(|member| &member.link)
    }

    /// The arithmetic that workers have a checkpoint loaded in, each kind once.
    #[must_use]
    pub fn dtypes(&self, digest: &Digest) -> Vec<String> {
        let reports = self.members.iter().filter_map(|member| member.link.latest());
        let dtypes: BTreeSet<String> = reports
            .flat_map(|report| report.ready.clone())
            .filter_map(|ready| ready.checkpoint)
            .filter(|checkpoint| checkpoint.digest == digest.as_str())
            .flat_map(|checkpoint| checkpoint.dtypes)
            .collect();
        dtypes.into_iter().collect()
    }

    /// What is known of a checkpoint.
    #[must_use]
    pub fn checkpoint(&self, digest: &Digest) -> Option<&Known> {
        self.known.get(digest)
    }

    /// All checkpoints, in no order.
    pub fn checkpoints(&self) -> impl Iterator<Item = (&Digest, &Known)> {
        self.known.iter()
    }

    /// Workers that take work for a checkpoint now.
    #[must_use]
    pub fn ready(&self, digest: &Digest) -> &[Arc<Link>] {
        self.known.get(digest).map_or(&[], |known| &known.ready)
    }

    /// Whether some model can be used now.
    #[must_use]
    pub fn serves(&self) -> bool {
        let ready = |alias: &Alias| {
            self.known.get(alias.digest.as_str()).is_some_and(|known| !known.ready.is_empty())
        };
        self.aliases.iter().flat_map(BTreeMap::values).any(ready)
    }

    /// Whether a worker answers here and does not say that it ends: what is asked before a directory without it is
    /// believed.
    #[must_use]
    pub fn answers(&self, id: &WorkerId) -> bool {
        let serving = |member: &&Member| member.standing == Standing::Serving;
        self.members.iter().filter(serving).any(|member| member.link.seat.id == *id)
    }
}

fn note(known: &mut HashMap<Digest, Known>, member: &Member, report: &HealthReport) {
    for ready in &report.ready {
        let Some(checkpoint) = &ready.checkpoint else { continue };
        let Some(card) = Card::of(checkpoint) else { continue };
        let entry = known.entry(Digest::from(checkpoint.digest.as_str())).or_insert_with(|| Known {
            card: Arc::new(card),
            names: BTreeSet::new(),
            ready: Vec::new(),
        });
        entry.names.insert(ready.model.clone());
        let listed = entry.ready.iter().any(|link| Arc::ptr_eq(link, &member.link));
        if member.standing == Standing::Serving && !listed {
            entry.ready.push(Arc::clone(&member.link));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cluster::View;
    use proto::v1;
    use proto::worker::v1::ReadyCheckpoint;

    use super::*;
    use crate::link::Seat;

    /// What a worker says that has an embedder of 384 dimensions under `model`.
    pub(crate) fn ready(model: &str, digest: &str) -> ReadyCheckpoint {
        let checkpoint = v1::Checkpoint {
            digest: digest.into(),
            index_space: format!("space of {model}"),
            kind: v1::ModelKind::Embedder.into(),
            dimensions: 384,
            max_tokens: 512,
            ..v1::Checkpoint::default()
        };
        ReadyCheckpoint { model: model.into(), checkpoint: Some(checkpoint) }
    }

    pub(crate) fn member(id: &str, standing: Standing, ready: Vec<ReadyCheckpoint>) -> Member {
        let seat = Seat { id: WorkerId::parse(id).unwrap(), address: "127.0.0.1:1".into() };
        let link = Arc::new(Link::new(seat, &tls::Dialer::default()).unwrap());
        link.heard(Arc::new(HealthReport { worker_id: id.into(), ready, ..HealthReport::default() }));
        Member { link, standing }
    }

    pub(crate) fn view(aliases: &[(&str, &str, u64)]) -> View {
        let alias = |&(name, digest, epoch): &(&str, &str, u64)| (name.to_owned(), Alias::of(digest, epoch));
        View { aliases: aliases.iter().map(alias).collect(), ..View::default() }
    }

    #[tokio::test]
    async fn only_who_serves_is_ready() {
        let members = vec![
            member("w1", Standing::Serving, vec![ready("m", "d"), ready("n", "d")]),
            member("w2", Standing::Draining, vec![ready("m", "d")]),
            member("w3", Standing::Unreachable, vec![ready("m", "d"), ready("m", "e")]),
        ];
        let fleet = Fleet::new(Some(&view(&[("m", "d", 1)]).aliases), members);
        let names: Vec<_> =
            fleet.ready(&Digest::from("d")).iter().map(|link| link.seat.id.as_str()).collect();
        assert_eq!(names, ["w1"]);
        assert!(fleet.ready(&Digest::from("e")).is_empty());
        assert!(fleet.checkpoint(&Digest::from("e")).is_some(), "what was known stays known");
        assert!(fleet.serves());
    }

    #[tokio::test]
    async fn a_cluster_without_a_name_for_what_is_loaded_serves_nothing() {
        let members = || vec![member("w1", Standing::Serving, vec![ready("m", "d")])];
        assert!(!Fleet::new(None, members()).serves());
        assert!(!Fleet::new(Some(&view(&[]).aliases), members()).serves());
        assert!(!Fleet::new(Some(&view(&[("m", "e", 2)]).aliases), members()).serves());
    }

    #[tokio::test]
    async fn who_drains_or_is_silent_does_not_answer() {
        let members = vec![
            member("w1", Standing::Serving, Vec::new()),
            member("w2", Standing::Draining, Vec::new()),
            member("w3", Standing::Unreachable, Vec::new()),
        ];
        let fleet = Fleet::new(None, members);
        let answers: Vec<_> =
            ["w1", "w2", "w3", "w4"].map(|id| fleet.answers(&WorkerId::parse(id).unwrap())).into();
        assert_eq!(answers, [true, false, false, false]);
    }
}
