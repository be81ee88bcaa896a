//! What people ask of a model's name: that it mean another checkpoint, what it meant before, or let go of that.

use std::time::Duration;

use cluster::{ListedVersion, Name, Refused, RequestError, Swap, SwapPlan};
use proto::v1;
use tokio::time;

use crate::control::unknown_version;
use crate::error::{ManageError, Unmet};
use crate::service::Service;
use crate::show;
use crate::wire::swaps;

/// How long it may take until what was just written is seen here, too.
const ECHO: Duration = Duration::from_secs(2);

impl Service {
    /// Makes a name mean another checkpoint, in time.
    pub(super) async fn move_name(&self, wire: v1::PromoteRequest) -> Result<v1::Swap, ManageError> {
        let (chosen, plan) = swaps::promotion(wire)?;
        let listed = self.control.version(&chosen.model, &chosen.digest).await?;
        self.begin_swap(&listed, &plan).await
    }

    /// Asks the leader for a swap.
    pub(super) async fn begin_swap(
        &self,
        ListedVersion { model, digest, version: _ }: &ListedVersion,
        plan: &SwapPlan,
    ) -> Result<v1::Swap, ManageError> {
        let asked = self.control.etcd.request_swap(model, digest, plan).await;
        let swap = asked.map_err(|error| not_asked(model, error))?;
        tracing::info!(model, digest, swap = swap.swap_id, "a swap was asked for");
        Ok(self.echo(model, swap).await)
    }

    /// Makes a name mean what it meant before, at once.
    pub(super) async fn move_back(&self, wire: v1::RollbackRequest) -> Result<v1::Swap, ManageError> {
        let model = self.known(swaps::rollback(wire)?)?;
        let swap = self.control.etcd.roll_back(model.as_str()).await;
        let swap = swap.map_err(|error| not_asked(model.as_str(), error))?;
        tracing::info!(%model, swap = swap.swap_id, epoch = swap.epoch, "a swap was rolled back");
        Ok(self.echo(model.as_str(), swap).await)
    }

    /// Lets go of what a name meant before, in time.
    pub(super) async fn let_go(&self, wire: v1::RetireRequest) -> Result<v1::Swap, ManageError> {
        let (model, digest) = swaps::retirement(wire)?;
        let model = self.known(model)?;
        let digest = match digest {
            Some(prefix) => Some(match prefix.whole() {
                Some(digest) => digest.to_string(),
                None => self.control.version(&model, &prefix).await?.digest,
            }),
            None => None,
        };
        let swap = self.control.etcd.request_retire(model.as_str(), digest.as_deref()).await;
        let swap = swap.map_err(|error| not_asked(model.as_str(), error))?;
        tracing::info!(%model, swap = swap.swap_id, "what a name meant before is to be let go");
        Ok(self.echo(model.as_str(), swap).await)
    }

    /// What became of a request, once this gateway sees it as well: who asks for more finds it.
    async fn echo(&self, model: &str, swap: Swap) -> v1::Swap {
        let mut views = self.control.views.clone();
        let seen = views.wait_for(|view| {
            let seen = view.swaps.get(model).filter(|seen| seen.swap_id == swap.swap_id);
            seen.is_some_and(|seen| seen.events.len() >= swap.events.len())
        });
        // Where etcd does not tell, what was asked for is done all the same.
        let _ = time::timeout(ECHO, seen).await;
        show::swap(model, &swap, &self.control.view(), &self.dispatcher.fleet())
    }

    /// The name, if the cluster has it.
    fn known(&self, model: Name) -> Result<Name, ManageError> {
        let view = self.seen()?;
        if view.aliases.contains_key(model.as_str()) || view.swaps.contains_key(model.as_str()) {
            return Ok(model);
        }
        let sentence = format!("there is no model {model}");
        Err(ManageError::NotFound { kind: "model", name: model.to_string(), sentence })
    }
}

/// Says why a request about `model` was not taken.
pub(super) fn not_asked(model: &str, error: RequestError) -> ManageError {
    match error {
        RequestError::Etcd(error) => error.into(),
        RequestError::Refused(refused) => self::refused(model, &refused),
    }
}

/// Says why what was asked of `model` is not to be done.
pub(super) fn refused(model: &str, refused: &Refused) -> ManageError {
    let unmet = |what, sentence| Unmet { what, subject: model.to_owned(), sentence }.into();
    match refused {
        Refused::Unpublished(digest) => unknown_version(model, digest),
        Refused::Meant(digest) => unmet("ALREADY_MEANT", format!("model {model} means {digest} already")),
        Refused::UnderWay { to } => {
            let sentence =
                format!("a swap of model {model} to {to} is under way: wait for it, or roll it back");
            unmet("SWAP_UNDER_WAY", sentence)
        }
        Refused::OtherKind { .. } => {
            unmet("KIND", format!("model {model}: {refused}; publish it under a name of its own"))
        }
        Refused::OtherSpace { from, to } => unmet("INDEX_SPACE", other_space(from, to)),
        Refused::NothingBefore | Refused::NobodyReady(_) | Refused::NotBefore(_) => {
            unmet("NOTHING_BEFORE", format!("model {model}: {refused}"))
        }
        Refused::InUse(_) => unmet("IN_USE", format!("model {model}: {refused}")),
    }
}

/// What it means to promote into another index space.
fn other_space(from: &str, to: &str) -> String {
    format!(
        "vectors of {to} cannot be compared with those of {from}: an index made with {from} answers wrongly to \
         queries by {to}, and has to be made again. Say that this is meant with plan.new_space (--new-space): both \
         checkpoints stay addressable by their digests until {from} is retired by hand"
    )
}
