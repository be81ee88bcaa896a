//! Where things are in etcd: the only file that writes or reads a key.
//!
//! ```text
//! /beige/<cluster>/workers/<worker>                  under the worker's lease
//! /beige/<cluster>/ready/<model>/<digest>/<worker>   under the worker's lease
//! /beige/<cluster>/nack/<model>/<digest>/<worker>    for an hour
//! /beige/<cluster>/aliases/<model>                   for ever
//! /beige/<cluster>/swaps/<model>                     for ever
//! /beige/<cluster>/pins/<model>/<digest>             for ever
//! /beige/<cluster>/gateways/<gateway>                under the gateway's lease
//! /beige/<cluster>/seen/<model>/<gateway>            under the gateway's lease
//! /beige/<cluster>/leader                            under the lease of the gateway that leads
//! /beige/<cluster>/versions/<model>/<digest>         for ever; in no view, as they only become more
//! /beige/<cluster>/trainers/<trainer>                under the trainer's lease
//! /beige/<cluster>/jobs/<job>                        for ever
//! /beige/<cluster>/jobs/<job>/owner                  under the owner's lease
//! /beige/<cluster>/jobs/<job>/progress               for ever
//! /beige/<cluster>/jobs/<job>/cancel                 until it has ended
//! /beige/<cluster>/curves/<job>                      for ever; beside the jobs, which are listed often
//! ```
//!
//! Other folders of the cluster belong to others; they are neither listed nor watched here.

use crate::name::{GatewayId, InvalidName, Name, TrainerId, WorkerId};

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// A worker's record.
    Worker(WorkerId),
    /// That a worker has a checkpoint loaded and warm.
    Ready { model: Name, digest: Name, worker: WorkerId },
    /// That a worker cannot run a checkpoint.
    Nack { model: Name, digest: Name, worker: WorkerId },
    /// What a model's name means.
    Alias(Name),
    /// A model's last swap.
    Swap(Name),
    /// That a checkpoint is kept.
    Pin { model: Name, digest: Name },
    /// A gateway's record.
    Gateway(GatewayId),
    /// What a gateway has seen of a model, and needs.
    Seen { model: Name, gateway: GatewayId },
    /// Who carries swaps out.
    Leader,
    /// A checkpoint that was published.
    Version { model: Name, digest: Name },
    /// A trainer's record.
    Trainer(TrainerId),
    /// A fine-tuning job.
    Job(Name),
    /// Who runs it.
    JobOwner(Name),
    /// How far its ranks are.
    JobProgress(Name),
    /// That it is wanted no more.
    JobCancel(Name),
    /// How it went.
    JobCurve(Name),
}

/// What a reader of the cluster wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All that is in a view.
    Everything,
    /// What a worker needs to know what it is to hold. Not who else there is, which changes all the time.
    Wishes,
}

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// `/beige/<cluster>/`: ends with the separator, so that cluster `a` does not see cluster `ab`.
    root: String,
}

/// Why a key under our folders is skipped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForeignKey {
    /// Not as in the table above.
    #[error("not a key of this release")]
    Unknown,
    /// In the right place, with a name that nobody of ours would have written.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl Keys {
    pub(crate) fn new(cluster: &Name) -> Self {
        Self { root: format!("/beige/{cluster}/") }
    }

    /// The prefixes that together hold a view of `scope`.
    pub(crate) fn folders(&self, scope: Scope) -> Vec<String> {
        let wishes = ["aliases/", "swaps/", "pins/", "nack/"];
        let rest: &[&str] = match scope {
            Scope::Everything => &["workers/", "ready/", "gateways/", "seen/", "leader"],
            Scope::Wishes => &[],
        };
        rest.iter().chain(&wishes).map(|folder| format!("{}{folder}", self.root)).collect()
    }

    /// The prefix of all workers that are ready with one checkpoint.
    pub(crate) fn ready_with(&self, model: &Name, digest: &Name) -> String {
        format!("{}ready/{model}/{digest}/", self.root)
    }

    /// The prefix of all gateways.
    pub(crate) fn gateways(&self) -> String {
        format!("{}gateways/", self.root)
    }

    /// The prefix of what gateways say of `model`.
    pub(crate) fn seen(&self, model: &Name) -> String {
        format!("{}seen/{model}/", self.root)
    }

    /// The prefix of the versions of `model`, or of all models.
    pub(crate) fn versions(&self, model: Option<&Name>) -> String {
        match model {
            Some(model) => format!("{}versions/{model}/", self.root),
            None => format!("{}versions/", self.root),
        }
    }

    /// The prefix of all trainers.
    pub(crate) fn trainers(&self) -> String {
        format!("{}trainers/", self.root)
    }

    /// The prefix of all jobs and what belongs to them.
    pub(crate) fn jobs(&self) -> String {
        format!("{}jobs/", self.root)
    }

    pub(crate) fn format(&self, key: &Key) -> String {
        let path = match key {
            Key::Worker(worker) => format!("workers/{worker}"),
            Key::Ready { model, digest, worker } => format!("ready/{model}/{digest}/{worker}"),
            Key::Nack { model, digest, worker } => format!("nack/{model}/{digest}/{worker}"),
            Key::Alias(model) => format!("aliases/{model}"),
            Key::Swap(model) => format!("swaps/{model}"),
            Key::Pin { model, digest } => format!("pins/{model}/{digest}"),
            Key::Gateway(gateway) => format!("gateways/{gateway}"),
            Key::Seen { model, gateway } => format!("seen/{model}/{gateway}"),
            Key::Leader => "leader".to_owned(),
            Key::Version { model, digest } => format!("versions/{model}/{digest}"),
            Key::Trainer(trainer) => format!("trainers/{trainer}"),
            Key::Job(job) => format!("jobs/{job}"),
            Key::JobOwner(job) => format!("jobs/{job}/owner"),
            Key::JobProgress(job) => format!("jobs/{job}/progress"),
            Key::JobCancel(job) => format!("jobs/{job}/cancel"),
            Key::JobCurve(job) => format!("curves/{job}"),
        };
        format!("{}{path}", self.root)
    }

    pub(crate) fn parse(&self, key: &[u8]) -> Result<Key, ForeignKey> {
        let key = str::from_utf8(key).map_err(|_| ForeignKey::Unknown)?;
        let path = key.strip_prefix(&self.root).ok_or(ForeignKey::Unknown)?;
        let segments: Vec<&str> = path.split('/').collect();
        match segments[..] {
            ["workers", worker] => Ok(Key::Worker(worker.parse()?)),
            ["ready", model, digest, worker] => {
                Ok(Key::Ready { model: model.parse()?, digest: digest.parse()?, worker: worker.parse()? })
            }
            ["nack", model, digest, worker] => {
                Ok(Key::Nack { model: model.parse()?, digest: digest.parse()?, worker: worker.parse()? })
            }
            ["aliases", model] => Ok(Key::Alias(model.parse()?)),
            ["swaps", model] => Ok(Key::Swap(model.parse()?)),
            ["pins", model, digest] => Ok(Key::Pin { model: model.parse()?, digest: digest.parse()? }),
            ["gateways", gateway] => Ok(Key::Gateway(gateway.parse()?)),
            ["seen", model, gateway] => Ok(Key::Seen { model: model.parse()?, gateway: gateway.parse()? }),
            ["leader"] => Ok(Key::Leader),
            ["versions", model, digest] => {
                Ok(Key::Version { model: model.parse()?, digest: digest.parse()? })
            }
            ["trainers", trainer] => Ok(Key::Trainer(trainer.parse()?)),
            ["jobs", job] => Ok(Key::Job(job.parse()?)),
            ["jobs", job, "owner"] => Ok(Key::JobOwner(job.parse()?)),
            ["jobs", job, "progress"] => Ok(Key::JobProgress(job.parse()?)),
            ["jobs", job, "cancel"] => Ok(Key::JobCancel(job.parse()?)),
            ["curves", job] => Ok(Key::JobCurve(job.parse()?)),
            _ => Err(ForeignKey::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> Keys {
        Keys::new(&Name::parse("blue").unwrap())
    }

    fn name() -> impl Strategy<Value = Name> {
        "[A-Za-z0-9._:-]{1,40}".prop_map(|text| Name::parse(text).unwrap())
    }

    fn key() -> impl Strategy<Value = Key> {
        let of_worker = |(model, digest, worker): (Name, Name, Name), nack: bool| {
            let worker = WorkerId::from(worker);
            if nack { Key::Nack { model, digest, worker } } else { Key::Ready { model, digest, worker } }
        };
        prop_oneof![
            name().prop_map(|worker| Key::Worker(worker.into())),
            ((name(), name(), name()), any::<bool>()).prop_map(move |(names, nack)| of_worker(names, nack)),
            name().prop_map(Key::Alias),
            name().prop_map(Key::Swap),
            (name(), name()).prop_map(|(model, digest)| Key::Pin { model, digest }),
            name().prop_map(|gateway| Key::Gateway(gateway.into())),
            Just(Key::Leader),
            (name(), name()).prop_map(|(model, digest)| Key::Version { model, digest }),
            name().prop_map(|trainer| Key::Trainer(trainer.into())),
            name().prop_map(Key::Job),
            name().prop_map(Key::JobOwner),
            name().prop_map(Key::JobProgress),
            name().prop_map(Key::JobCancel),
            name().prop_map(Key::JobCurve),
        ]
    }

    #[track_caller]
    fn check(key: &Key, text: &str) {
        assert_eq!(keys().format(key), text);
        assert_eq!(keys().parse(text.as_bytes()).as_ref(), Ok(key));
    }

    #[test]
    fn keys_are_where_the_design_says() {
        let name = |text| Name::parse(text).unwrap();
        let (model, digest, worker) = (|| name("bge-m3"), || name("d0"), || WorkerId::from(name("w1")));
        check(&Key::Worker(worker()), "/beige/blue/workers/w1");
        check(&Key::Alias(model()), "/beige/blue/aliases/bge-m3");
        check(&Key::Swap(model()), "/beige/blue/swaps/bge-m3");
        let (ready, nack) = (
            Key::Ready { model: model(), digest: digest(), worker: worker() },
            Key::Nack { model: model(), digest: digest(), worker: worker() },
        );
        check(&ready, "/beige/blue/ready/bge-m3/d0/w1");
        check(&nack, "/beige/blue/nack/bge-m3/d0/w1");
        check(&Key::Pin { model: model(), digest: digest() }, "/beige/blue/pins/bge-m3/d0");
        check(&Key::Version { model: model(), digest: digest() }, "/beige/blue/versions/bge-m3/d0");
        check(&Key::Gateway(name("g1").into()), "/beige/blue/gateways/g1");
        check(&Key::Seen { model: model(), gateway: name("g1").into() }, "/beige/blue/seen/bge-m3/g1");
        check(&Key::Leader, "/beige/blue/leader");
        check(&Key::Trainer(name("t1").into()), "/beige/blue/trainers/t1");
        check(&Key::Job(name("j1")), "/beige/blue/jobs/j1");
        check(&Key::JobOwner(name("j1")), "/beige/blue/jobs/j1/owner");
        check(&Key::JobProgress(name("j1")), "/beige/blue/jobs/j1/progress");
        check(&Key::JobCancel(name("j1")), "/beige/blue/jobs/j1/cancel");
        check(&Key::JobCurve(name("j1")), "/beige/blue/curves/j1");
    }

    #[test]
    fn keys_of_others_are_not_understood() {
        for key in [
            "",
            "/beige/blue",
            "/beige/blue/",
            "/beige/blue/workers",
            "/beige/blue/workers/w1/more",
            "/beige/blue/ready/m/d",
            "/beige/blue/leader/more",
            "/beige/blue/leaders",
            "/beige/blue/jobs/j1/more",
            "/beige/bluest/workers/w1",
            "/beige/red/workers/w1",
        ] {
            assert_eq!(keys().parse(key.as_bytes()), Err(ForeignKey::Unknown), "{key}");
        }
        assert_eq!(keys().parse(b"/beige/blue/workers/"), Err(ForeignKey::Name(InvalidName::Empty)));
        assert_eq!(keys().parse(b"/beige/blue/workers/\xff"), Err(ForeignKey::Unknown));
    }

    /// Whether a view has room for what is at `key`.
    fn is_seen(key: &Key) -> bool {
        let outside = matches!(key, Key::Version { .. } | Key::Trainer(_) | Key::Job(_) | Key::JobOwner(_));
        !(outside || matches!(key, Key::JobProgress(_) | Key::JobCancel(_) | Key::JobCurve(_)))
    }

    proptest! {
        #[test]
        fn a_key_read_back_is_the_key_written(key in key()) {
            let text = keys().format(&key);
            let folders = keys().folders(Scope::Everything);
            prop_assert_eq!(folders.iter().any(|folder| text.starts_with(folder.as_str())), is_seen(&key));
            prop_assert_eq!(keys().parse(text.as_bytes()), Ok(key));
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = keys().parse(&[b"/beige/blue/".as_slice(), &bytes].concat());
        }
    }
}
