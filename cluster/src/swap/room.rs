//! Why a swap finds no room, in words that say what would make some.

use super::prepare::Fleet;
use crate::record::Swap;
use crate::view::View;

/// Digits of a digest that tell it from others.
const SHORT: usize = 12;

/// Why the checkpoints of `swap` do not fit, where nobody can let the old one go before it loads the new one.
pub(super) fn why_not_beside(swap: &Swap, is_pinned: bool) -> String {
    match &swap.from {
        None => "the checkpoint does not fit".to_owned(),
        Some(from) if is_pinned => format!("the two checkpoints do not fit, and {from} is pinned"),
        Some(_) => "the two checkpoints do not fit, and nobody can be spared".to_owned(),
    }
}

/// What an operator can say to make room on the workers of `fleet` that have none: they hold what no name means, for a
/// rollback of another model or because it is pinned.
pub(super) fn to_make_room(view: &View, model: &str, fleet: &Fleet<'_>) -> Option<String> {
    let short = fleet.out_of_memory();
    let held = view.ready.iter().filter(|(_, workers)| workers.iter().any(|id| short.contains(id)));
    let commands: Vec<String> =
        held.filter_map(|((of, digest), _)| command(view, model, of, digest)).collect();
    (!commands.is_empty()).then(|| format!("to make room: {}", commands.join(", ")))
}

/// What lets go of `digest` of `of`, where a swap of `model` can do without it.
fn command(view: &View, model: &str, of: &str, digest: &str) -> Option<String> {
    let alias = view.aliases.get(of);
    let swap = view.swaps.get(of).filter(|swap| swap.is_under_way());
    let is_meant = alias.is_some_and(|alias| alias.digest == digest);
    let is_coming = swap.is_some_and(|swap| swap.to == digest);
    let is_before = alias.is_some_and(|alias| alias.prev.as_deref() == Some(digest));
    if is_meant || is_coming {
        None
    } else if view.pins.contains_key(&(of.to_owned(), digest.to_owned())) {
        Some(format!("beige models unpin {of} {}", digest.get(..SHORT).unwrap_or(digest)))
    } else {
        (is_before && of != model).then(|| format!("beige models retire {of}"))
    }
}
