//! Rules that can be broken on purpose, to see that it is noticed.

use super::laws::Broken;
use super::world::{MODELS, name};
use crate::keys::Key;
use crate::record::{Record, SwapMode, SwapState};
use crate::transaction::{Fact, Transaction, Write};

/// A rule, broken everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Steps do not compare that the name and the swap are as they were seen.
    SeenUnchanged,
    /// A commit does not compare that workers are still ready.
    StillReady,
    /// Steps of a leader do not compare that it still leads.
    StillLeads,
    /// Letting go does not compare that no gateway has said anything since.
    GatewaysQuiet,
    /// Letting go does not wait after a gateway vanished.
    Grace,
    /// A change of who is answered does not raise the epoch.
    EpochRises,
    /// Waves do not compare that enough workers still serve the old checkpoint.
    WavesKeepAFloor,
    /// A worker says that it is ready before it has loaded.
    ReadyIsLoaded,
    /// A worker lets go before it has withdrawn its word.
    WithdrawnFirst,
    /// A gateway says that it has seen the newest epoch, whatever it has seen.
    EpochsAreSeen,
    /// A gateway does not say what its calls still use.
    BusyIsSaid,
    /// A gateway takes back an epoch for a name that it learns late.
    HigherEpochHolds,
    /// A worker answers with whatever it has.
    AnswersAreAsked,
    /// A gateway that became the leader without knowing does not notice.
    KnowsItself,
    /// A swap begins while an earlier checkpoint is still leaving.
    NothingLeaves,
    /// A worker tells of an epoch, and not of the callers that a canary takes.
    CanaryIsTold,
    /// Once a swap is taken up, it is forgotten how many workers must be ready.
    EnoughStays,
    /// Where a fleet shrinks, fewer than half of what was counted are enough.
    HalfIsKept,
    /// What a gateway says of one model counts for all.
    ModelsAreApart,
    /// A member writes without comparing that it was the last to write.
    AnchorHolds,
    /// A member takes a write that was not answered for one that was carried out.
    FateIsUnknown,
}

impl Rule {
    pub(super) const ALL: [Self; 21] = [
        Self::SeenUnchanged,
        Self::StillReady,
        Self::StillLeads,
        Self::GatewaysQuiet,
        Self::Grace,
        Self::EpochRises,
        Self::WavesKeepAFloor,
        Self::ReadyIsLoaded,
        Self::WithdrawnFirst,
        Self::EpochsAreSeen,
        Self::BusyIsSaid,
        Self::HigherEpochHolds,
        Self::AnswersAreAsked,
        Self::KnowsItself,
        Self::NothingLeaves,
        Self::CanaryIsTold,
        Self::EnoughStays,
        Self::HalfIsKept,
        Self::ModelsAreApart,
        Self::AnchorHolds,
        Self::FateIsUnknown,
    ];

    /// Whether `law` is the one that this rule is there for. Another one may break as well where it is broken.
    pub(super) fn is_for(self, law: &Broken) -> bool {
        match self {
            Self::SeenUnchanged => matches!(law, Broken::EpochJumps { .. }),
            Self::StillReady => matches!(law, Broken::TooFewReady { .. }),
            Self::EnoughStays => matches!(law, Broken::TooFewReady { .. } | Broken::BelowHalf { .. }),
            Self::HalfIsKept => matches!(law, Broken::BelowHalf { .. }),
            Self::StillLeads => matches!(law, Broken::NotTheLeader { .. }),
            Self::GatewaysQuiet | Self::Grace | Self::EpochsAreSeen | Self::BusyIsSaid => {
                matches!(law, Broken::InUse { .. })
            }
            Self::EpochRises => matches!(law, Broken::EpochStays { .. }),
            Self::WavesKeepAFloor => matches!(law, Broken::BelowTheFloor { .. }),
            Self::ReadyIsLoaded | Self::WithdrawnFirst | Self::AnchorHolds | Self::FateIsUnknown => {
                matches!(law, Broken::NotLoaded { .. })
            }
            Self::HigherEpochHolds => matches!(law, Broken::EpochFell { .. }),
            Self::AnswersAreAsked => matches!(law, Broken::NotMeant { .. }),
            Self::KnowsItself => matches!(law, Broken::NeverEnds { .. }),
            Self::ModelsAreApart => matches!(law, Broken::NeverEnds { .. } | Broken::NeverLeft { .. }),
            Self::NothingLeaves => matches!(law, Broken::TooManyLoaded { .. }),
            Self::CanaryIsTold => matches!(law, Broken::Split { .. }),
        }
    }

    /// `transaction` as one would write it who did not know the rule.
    pub(super) fn spoil(self, mut transaction: Transaction) -> Transaction {
        let leads_to = transaction.then.iter().find_map(|write| match write {
            Write::Put(Key::Swap(_), Record::Swap(swap)) => Some(swap.state),
            _ => None,
        });
        let when = &mut transaction.when;
        match self {
            Self::SeenUnchanged => when.retain(|fact| !matches!(fact, Fact::Unchanged { modified: 1.., .. })),
            Self::StillReady if leads_to == Some(SwapState::Committed) => forget_readiness(when),
            Self::WavesKeepAFloor if leads_to == Some(SwapState::Preparing) => forget_readiness(when),
            Self::StillLeads => when.retain(|fact| !matches!(fact, Fact::Since { .. })),
            Self::GatewaysQuiet => {
                when.retain(|fact| !matches!(fact, Fact::NoGatewaySince(_) | Fact::QuietSince { .. }));
            }
            Self::EnoughStays => transaction.then.iter_mut().for_each(forget_how_many),
            Self::ModelsAreApart => mix_models(when),
            Self::EpochRises => {
                for write in &mut transaction.then {
                    if let Write::Put(Key::Alias(_), Record::Alias(alias)) = write {
                        alias.epoch = alias.epoch.saturating_sub(1).max(1);
                    }
                }
            }
            _ => {}
        }
        transaction
    }
}

/// What is written when a swap is taken up stays as it is: it is what later ones are held against.
fn forget_how_many(write: &mut Write) {
    if let Write::Put(Key::Swap(_), Record::Swap(swap)) = write {
        let is_taken_up = swap.trial_since_unix_ms.is_none() && swap.mode == SwapMode::Beside;
        if swap.state.is_open() && !is_taken_up {
            swap.min_ready = 1;
        }
    }
}

/// Whatever was said of any model counts.
fn mix_models(when: &mut Vec<Fact>) {
    let revision = when.iter().find_map(|fact| match fact {
        Fact::QuietSince { revision, .. } => Some(*revision),
        _ => None,
    });
    let all = revision
        .into_iter()
        .flat_map(|revision| MODELS.map(|model| Fact::QuietSince { model: name(model), revision }));
    when.extend(all.collect::<Vec<_>>());
}

fn forget_readiness(when: &mut Vec<Fact>) {
    when.retain(|fact| !matches!(fact, Fact::Present(Key::Ready { .. })));
}
