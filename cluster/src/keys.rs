//! Where things are in etcd: the only file that writes or reads a key.
//!
//! ```text
//! /beige/<cluster>/workers/<worker>                  under the worker's lease
//! /beige/<cluster>/ready/<model>/<digest>/<worker>   under the worker's lease
//! /beige/<cluster>/aliases/<model>                   for ever
//! ```
//!
//! Other folders of the cluster belong to parts that are not built yet; they are neither listed nor watched here.

use crate::name::{InvalidName, Name, WorkerId};

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// A worker's record.
    Worker(WorkerId),
    /// That a worker has a checkpoint loaded and warm.
    Ready { model: Name, digest: Name, worker: WorkerId },
    /// What a model's name means.
    Alias(Name),
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

    /// The prefixes that together hold a view.
    pub(crate) fn folders(&self) -> [String; 3] {
        ["workers/", "ready/", "aliases/"].map(|folder| format!("{}{folder}", self.root))
    }

    /// The prefix of all workers that are ready with one checkpoint.
    pub(crate) fn ready_with(&self, model: &Name, digest: &Name) -> String {
        format!("{}ready/{model}/{digest}/", self.root)
    }

    pub(crate) fn format(&self, key: &Key) -> String {
        match key {
            Key::Worker(worker) => format!("{}workers/{worker}", self.root),
            Key::Ready { model, digest, worker } => format!("{}{worker}", self.ready_with(model, digest)),
            Key::Alias(model) => format!("{}aliases/{model}", self.root),
        }
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
            ["aliases", model] => Ok(Key::Alias(model.parse()?)),
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
        prop_oneof![
            name().prop_map(|worker| Key::Worker(worker.into())),
            (name(), name(), name()).prop_map(|(model, digest, worker)| Key::Ready {
                model,
                digest,
                worker: worker.into()
            }),
            name().prop_map(Key::Alias),
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
        check(&Key::Worker(name("w1").into()), "/beige/blue/workers/w1");
        check(&Key::Alias(name("bge-m3")), "/beige/blue/aliases/bge-m3");
        let ready = Key::Ready { model: name("bge-m3"), digest: name("d0"), worker: name("w1").into() };
        check(&ready, "/beige/blue/ready/bge-m3/d0/w1");
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
            "/beige/blue/versions/m/d",
            "/beige/bluest/workers/w1",
            "/beige/red/workers/w1",
        ] {
            assert_eq!(keys().parse(key.as_bytes()), Err(ForeignKey::Unknown), "{key}");
        }
        assert_eq!(keys().parse(b"/beige/blue/workers/"), Err(ForeignKey::Name(InvalidName::Empty)));
        assert_eq!(keys().parse(b"/beige/blue/workers/\xff"), Err(ForeignKey::Unknown));
    }

    proptest! {
        #[test]
        fn a_key_read_back_is_the_key_written(key in key()) {
            let text = keys().format(&key);
            prop_assert!(keys().folders().iter().any(|folder| text.starts_with(folder.as_str())));
            prop_assert_eq!(keys().parse(text.as_bytes()), Ok(key));
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = keys().parse(&[b"/beige/blue/".as_slice(), &bytes].concat());
        }
    }
}
