//! One step of a swap, and the transaction that it becomes.

use crate::keys::Key;
use crate::name::Name;
use crate::record::{Alias, Record, Swap};
use crate::transaction::{Fact, Transaction, Write};
use crate::view::View;

/// A model's name and its last swap as they were seen, and when they were written.
#[derive(Clone, Debug)]
pub(crate) struct Standing<'a> {
    pub(crate) model: Name,
    pub(crate) alias: Option<&'a Alias>,
    /// When the alias was last written; 0 where there is none.
    pub(crate) alias_modified: i64,
    pub(crate) swap: Option<&'a Swap>,
    /// When the swap was last written; 0 where there is none.
    pub(crate) swap_modified: i64,
}

/// What is to be written of a model, and what that rests on beside how the model stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    pub(crate) alias: Option<Alias>,
    pub(crate) swap: Option<Swap>,
    pub(crate) rests_on: Vec<Fact>,
}

/// What tells a leader from those before it and after it: when its key came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) created: i64,
}

impl Fence {
    /// That the leader leads still.
    pub(crate) fn fact(self) -> Fact {
        Fact::Since { key: Key::Leader, created: self.created }
    }
}

impl<'a> Standing<'a> {
    /// How `model` stands in `view`.
    pub(crate) fn of(view: &'a View, model: Name) -> Self {
        let (alias, swap) = (view.aliases.get(model.as_str()), view.swaps.get(model.as_str()));
        let alias_modified = view.revisions.modified(&Key::Alias(model.clone()));
        let swap_modified = view.revisions.modified(&Key::Swap(model.clone()));
        Self { model, alias, alias_modified, swap, swap_modified }
    }

    /// The transaction that takes `step`, unless the name or the swap has been written since.
    pub(crate) fn take(&self, step: Step) -> Transaction {
        let Step { alias, swap, rests_on } = step;
        let (alias_key, swap_key) = (Key::Alias(self.model.clone()), Key::Swap(self.model.clone()));
        let mut when = vec![
            Fact::Unchanged { key: alias_key.clone(), modified: self.alias_modified },
            Fact::Unchanged { key: swap_key.clone(), modified: self.swap_modified },
        ];
        when.extend(rests_on);
        let alias = alias.map(|alias| Write::Put(alias_key, Record::Alias(alias)));
        let swap = swap.map(|swap| Write::Put(swap_key, Record::Swap(Box::new(swap))));
        Transaction { when, then: alias.into_iter().chain(swap).collect() }
    }
}
