//! What is said of a checkpoint by one side alone: a worker that it cannot run it, an operator that it is to be kept.

use std::time::Duration;

use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::name::{Name, WorkerId};
use crate::record::{Nack, Pin, Record};
use crate::transaction::{Fact, Outcome, Transaction, Write};

/// How long a worker's refusal lasts: whatever was wrong may be mended by then.
const NACK_LASTS: Duration = Duration::from_secs(3600);

impl Etcd {
    /// Says that `worker` cannot run a checkpoint, for an hour.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; else as every call.
    pub async fn put_nack(
        &self,
        (model, digest): (&str, &str),
        worker: &WorkerId,
        nack: &Nack,
    ) -> Result<(), Error> {
        let key = nack_key((model, digest), worker)?;
        let lease = self.grant_lease(NACK_LASTS).await?;
        let then = vec![Write::PutUnder(lease, key, Record::Nack(nack.clone()))];
        self.transact("refuse a checkpoint", &Transaction { when: Vec::new(), then }).await?;
        Ok(())
    }

    /// Takes a refusal back, if there is one: the worker tries again, or runs the checkpoint after all.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; else as every call.
    pub async fn clear_nack(&self, (model, digest): (&str, &str), worker: &WorkerId) -> Result<(), Error> {
        let then = vec![Write::Delete(nack_key((model, digest), worker)?)];
        self.transact("take a refusal back", &Transaction { when: Vec::new(), then }).await?;
        Ok(())
    }

    /// Keeps a published checkpoint loaded and stored. False, and nothing is written, where it was not published.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; [`Error::Unreadable`] where a newer release wrote it; else as every call.
    pub async fn pin(&self, (model, digest): (&str, &str), pin: Pin) -> Result<bool, Error> {
        let (version, key) = pin_keys((model, digest))?;
        let when = vec![Fact::Present(version), Fact::absent(key.clone())];
        let then = vec![Write::Put(key.clone(), Record::Pin(pin))];
        match self.transact("pin a checkpoint", &Transaction { when, then }).await? {
            Outcome::Done(_) => Ok(true),
            Outcome::Conflict => {
                let [pinned] = self.read("read a pin", [&key]).await?;
                Ok(pinned.is_some())
            }
        }
    }

    /// Keeps a checkpoint no longer than its model's name does.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; else as every call.
    pub async fn unpin(&self, (model, digest): (&str, &str)) -> Result<(), Error> {
        let (_, key) = pin_keys((model, digest))?;
        let then = vec![Write::Delete(key)];
        self.transact("unpin a checkpoint", &Transaction { when: Vec::new(), then }).await?;
        Ok(())
    }
}

fn nack_key((model, digest): (&str, &str), worker: &WorkerId) -> Result<Key, Error> {
    Ok(Key::Nack { model: Name::parse(model)?, digest: Name::parse(digest)?, worker: worker.clone() })
}

/// The keys of a version and of its pin.
fn pin_keys((model, digest): (&str, &str)) -> Result<(Key, Key), Error> {
    let (model, digest) = (Name::parse(model)?, Name::parse(digest)?);
    let pin = Key::Pin { model: model.clone(), digest: digest.clone() };
    Ok((Key::Version { model, digest }, pin))
}
