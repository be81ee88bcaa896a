//! What people ask for, written down in etcd. Any gateway can take it: nothing here needs a leader.

use crate::clock::unix_ms;
use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::name::{Name, WorkerId};
use crate::record::{Alias, ModelKind, Record, Swap, SwapPlan, Version};
use crate::swap::{Asked, Asking, Kinship, Refused, Standing, request, retire, roll_back};
use crate::transaction::{Fact, Found, Outcome, Transaction, Write};

/// A round is lost only to somebody who wrote about the same model at the same moment.
const ROUNDS: usize = 8;

/// Workers that are looked at to see that there is one.
const ENOUGH: i64 = 8;

/// Why what was asked for was not done.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is not to be done, and nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// etcd did not take it. Where there was no answer it may have been done nevertheless.
    #[error(transparent)]
    Etcd(#[from] Error),
}

impl Etcd {
    /// Asks for a swap of `model` to `digest`; answers it as it is then. To ask again for what is under way is fine: of
    /// a swap on trial, it ends the trial in favour of the new checkpoint.
    ///
    /// # Errors
    /// [`RequestError::Refused`] where the version is not published, the name means it already, another swap is under
    /// way, it is another kind of checkpoint, or the index space is another and the plan does not say that this is meant.
    pub async fn request_swap(
        &self,
        model: &str,
        digest: &str,
        plan: &SwapPlan,
    ) -> Result<Swap, RequestError> {
        let (model, to) = (parse(model)?, parse(digest)?);
        let swap_id = format!("{:016x}", rand::random::<u64>());
        for _ in 0..ROUNDS {
            let found = self.standing(&model).await?;
            let new = self.version(model.as_str(), to.as_str()).await?;
            let new = new.ok_or_else(|| Refused::Unpublished(to.to_string()))?;
            let old = match &found.alias {
                Some(alias) => self.version(model.as_str(), &alias.digest).await?,
                None => None,
            };
            let kinship = old.map_or(Kinship::OtherSpace, |old| kinship(&old, &new));
            let asked = Asked { swap_id: &swap_id, to: &to, plan, kinship };
            let asking = request(&found.standing(&model), &asked, unix_ms())?;
            if let Some(swap) = self.settle("ask for a swap", asking).await? {
                return Ok(swap);
            }
        }
        Err(self.contended(&model))
    }

    /// Ends the swap of `model` under way, or makes the name mean what it meant before; answers the swap as it is then.
    /// It is done when this returns: no leader is needed, and nothing is loaded.
    ///
    /// # Errors
    /// [`RequestError::Refused`] where there is nothing to go back to, or nobody is ready with it.
    pub async fn roll_back(&self, model: &str) -> Result<Swap, RequestError> {
        let model = parse(model)?;
        for _ in 0..ROUNDS {
            let found = self.standing(&model).await?;
            let before = found.alias.as_ref().and_then(|alias| alias.prev.as_deref());
            let ready = match before.map(Name::parse) {
                Some(Ok(before)) => self.ready_workers(&model, &before).await?,
                Some(Err(_)) | None => Vec::new(),
            };
            let asking = roll_back(&found.standing(&model), &ready, unix_ms())?;
            if let Some(swap) = self.settle("roll back", asking).await? {
                return Ok(swap);
            }
        }
        Err(self.contended(&model))
    }

    /// Asks that what `model` meant before be let go, which the leader does once no call uses it: `digest`, or whatever
    /// it was. Answers the swap as it is then.
    ///
    /// # Errors
    /// [`RequestError::Refused`] where the name did not mean that before, or it was let go already.
    pub async fn request_retire(&self, model: &str, digest: Option<&str>) -> Result<Swap, RequestError> {
        let model = parse(model)?;
        for _ in 0..ROUNDS {
            let found = self.standing(&model).await?;
            let asking = retire(&found.standing(&model), digest, unix_ms())?;
            if let Some(swap) = self.settle("ask to let a checkpoint go", asking).await? {
                return Ok(swap);
            }
        }
        Err(self.contended(&model))
    }

    /// Forgets a version that nothing uses: the name and its swap do not refer to it, nobody is ready with it, and it is
    /// not pinned. One that is not known is forgotten already.
    ///
    /// # Errors
    /// [`RequestError::Refused`] where it is in use.
    pub async fn forget_version(&self, model: &str, digest: &str) -> Result<(), RequestError> {
        let (model, digest) = (parse(model)?, parse(digest)?);
        let in_use = || Refused::InUse(digest.to_string());
        for _ in 0..ROUNDS {
            let found = self.standing(&model).await?;
            let mut forget = found.forget(&model, &digest).ok_or_else(in_use)?;
            let pin = Key::Pin { model: model.clone(), digest: digest.clone() };
            let [pinned] = self.read("read a pin", [&pin]).await?;
            if pinned.is_some() || !self.ready_workers(&model, &digest).await?.is_empty() {
                return Err(in_use().into());
            }
            forget.when.push(Fact::absent(pin));
            forget.when.push(Fact::NobodyReady { model: model.clone(), digest: digest.clone() });
            if self.transact("forget a version", &forget).await? != Outcome::Conflict {
                return Ok(());
            }
        }
        Err(self.contended(&model))
    }

    /// Writes what was asked for; none where somebody else was quicker, and one has to look again.
    async fn settle(&self, call: &'static str, asking: Asking) -> Result<Option<Swap>, Error> {
        match asking {
            Asking::UnderWay(swap) => Ok(Some(*swap)),
            Asking::Write(transaction, swap) => match self.transact(call, &transaction).await? {
                Outcome::Done(_) => Ok(Some(*swap)),
                Outcome::Conflict => Ok(None),
            },
        }
    }

    async fn standing(&self, model: &Name) -> Result<FoundStanding, Error> {
        let keys = [&Key::Alias(model.clone()), &Key::Swap(model.clone())];
        let [alias, swap] = self.read("read a name and its swap", keys).await?;
        Ok(FoundStanding::of(alias, swap))
    }

    /// Some of the workers that are ready with a checkpoint.
    async fn ready_workers(&self, model: &Name, digest: &Name) -> Result<Vec<WorkerId>, Error> {
        let prefix = self.keys().ready_with(model, digest);
        let keys = self.some_keys("see who is ready", &prefix, ENOUGH).await?;
        Ok(keys
            .into_iter()
            .filter_map(|key| if let Key::Ready { worker, .. } = key { Some(worker) } else { None })
            .collect())
    }

    fn contended(&self, model: &Name) -> RequestError {
        Error::Contended { key: self.keys().format(&Key::Swap(model.clone())) }.into()
    }
}

/// Whether `new` can answer in place of `old`, and whether indexes have to be made again. Scores of cross-encoders are in
/// none.
fn kinship(old: &Version, new: &Version) -> Kinship {
    if old.kind != new.kind {
        Kinship::OtherKind
    } else if new.kind == ModelKind::CrossEncoder || old.index_space == new.index_space {
        Kinship::SameSpace
    } else {
        Kinship::OtherSpace
    }
}

fn parse(name: &str) -> Result<Name, Error> {
    Ok(Name::parse(name)?)
}

/// A name and its swap as they were read.
struct FoundStanding {
    alias: Option<Alias>,
    alias_modified: i64,
    swap: Option<Swap>,
    swap_modified: i64,
}

impl FoundStanding {
    fn of(alias: Option<Found>, swap: Option<Found>) -> Self {
        let (alias, alias_modified) = match alias {
            Some(Found { record: Record::Alias(alias), revision, .. }) => (Some(alias), revision.modified),
            Some(_) | None => (None, 0),
        };
        let (swap, swap_modified) = match swap {
            Some(Found { record: Record::Swap(swap), revision, .. }) => (Some(*swap), revision.modified),
            Some(_) | None => (None, 0),
        };
        Self { alias, alias_modified, swap, swap_modified }
    }

    fn standing(&self, model: &Name) -> Standing<'_> {
        Standing {
            model: model.clone(),
            alias: self.alias.as_ref(),
            alias_modified: self.alias_modified,
            swap: self.swap.as_ref(),
            swap_modified: self.swap_modified,
        }
    }

    /// Forgets a version as long as nothing here refers to it; none where something does.
    fn forget(&self, model: &Name, digest: &Name) -> Option<Transaction> {
        let kept = self.alias.as_ref().is_some_and(|alias| alias.keeps().contains(digest.as_str()));
        let coming =
            self.swap.as_ref().is_some_and(|swap| swap.state.is_open() && swap.to == digest.as_str());
        if kept || coming {
            return None;
        }
        let mut transaction = self.standing(model).take(crate::swap::Step::default());
        let version = Key::Version { model: model.clone(), digest: digest.clone() };
        transaction.then.push(Write::Delete(version));
        Some(transaction)
    }
}
