//! Which worker a shard goes to now, after those it was with before.

use std::sync::Arc;

use crate::fleet::Fleet;
use crate::link::Link;
use crate::resolve::Pin;
use crate::retry::Elsewhere;
use crate::route;

/// Whether a shard is all of its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// It is.
    Whole,
    /// It is one of many.
    Part,
}

/// Workers that did not answer a shard, each with the reports it had made by then.
#[derive(Debug, Default)]
pub struct Tried(Vec<(Arc<Link>, u64)>);

impl Tried {
    /// Notes `link`, and tells whether there is another worker to go to.
    pub fn add(&mut self, link: &Arc<Link>, fleet: &Fleet, pin: &Pin) -> Elsewhere {
        self.0.retain(|(other, _)| !Arc::ptr_eq(other, link));
        self.0.push((Arc::clone(link), link.reports()));
        let somebody = fleet.ready(&pin.digest).iter().any(|other| self.reports_when_tried(other).is_none());
        if somebody { Elsewhere::Somebody } else { Elsewhere::Nobody }
    }

    fn reports_when_tried(&self, link: &Arc<Link>) -> Option<u64> {
        self.0.iter().find(|(tried, _)| Arc::ptr_eq(tried, link)).map(|(_, reports)| *reports)
    }
}

/// Where a shard may go now.
#[derive(Debug)]
pub enum Choice {
    /// There.
    Take(Arc<Link>),
    /// Nowhere, until one of the workers has room.
    Full,
    /// Nowhere.
    Nobody,
}

/// The worker for a shard: one that was not tried before, else one that has reported since. Those that are
/// [left out](crate::outlier) come after the others in either case.
#[must_use]
pub fn choose(ready: &[Arc<Link>], tried: &Tried, tokens: u64, share: Share) -> Choice {
    let open = open(ready, tried);
    if open.is_empty() {
        return Choice::Nobody;
    }
    let fits = |link: &&Arc<Link>| share == Share::Whole || link.burden().has_room(tokens);
    let roomy: Vec<_> = open.into_iter().filter(fits).collect();
    let burdens: Vec<_> = roomy.iter().map(|link| link.burden()).collect();
    match route::pick(&burdens, tokens, [rand::random(), rand::random()]) {
        Some(chosen) => Choice::Take(Arc::clone(roomy[chosen])),
        None => Choice::Full,
    }
}

/// Workers among which there is nothing to choose but their load.
fn open<'a>(ready: &'a [Arc<Link>], tried: &Tried) -> Vec<&'a Arc<Link>> {
    let trusted = || ready.iter().filter(|link| link.trusted());
    let fresh = || trusted().filter(|link| tried.reports_when_tried(link).is_none());
    let reported = || trusted().filter(|link| tried.reports_when_tried(link) < Some(link.reports()));
    let well = |link: &&Arc<Link>| link.record.takes(link.outstanding());
    let first: Vec<_> = fresh().filter(well).collect();
    if !first.is_empty() {
        return first;
    }
    let rest = [fresh().collect(), reported().filter(well).collect(), reported().collect()];
    rest.into_iter().find(|links: &Vec<_>| !links.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Standing;
    use crate::fleet::tests::member;
    use crate::wire::Class;

    fn links(count: usize) -> Vec<Arc<Link>> {
        (0..count).map(|i| member(&format!("w{i}"), Standing::Serving, Vec::new()).link).collect()
    }

    fn tried(links: &[&Arc<Link>]) -> Tried {
        Tried(links.iter().map(|link| (Arc::clone(link), link.reports())).collect())
    }

    /// `expected` is the worker's id, `full` or `nobody`.
    #[track_caller]
    fn check(ready: &[Arc<Link>], tried: &Tried, share: Share, expected: &str) {
        let chosen = match choose(ready, tried, 1, share) {
            Choice::Take(link) => link.seat.id.to_string(),
            Choice::Full => "full".to_owned(),
            Choice::Nobody => "nobody".to_owned(),
        };
        assert_eq!(chosen, expected);
    }

    #[tokio::test]
    async fn a_worker_that_was_not_tried_comes_first() {
        let links = links(2);
        check(&links, &tried(&[&links[0]]), Share::Whole, "w1");
        check(&links, &tried(&[&links[1]]), Share::Whole, "w0");
        check(&links, &tried(&[&links[0], &links[1]]), Share::Whole, "nobody");
        check(&[], &Tried::default(), Share::Whole, "nobody");
    }

    #[tokio::test]
    async fn one_that_was_tried_is_tried_again_after_a_report() {
        let links = links(1);
        let tried = tried(&[&links[0]]);
        check(&links, &tried, Share::Whole, "nobody");
        links[0].heard(Arc::default());
        check(&links, &tried, Share::Whole, "w0");
    }

    #[tokio::test]
    async fn one_whose_connection_failed_is_left_alone_by_all() {
        let links = links(2);
        links[1].suspect();
        check(&links, &Tried::default(), Share::Whole, "w0");
        check(&links, &tried(&[&links[0]]), Share::Whole, "nobody");
    }

    #[tokio::test]
    async fn parts_of_a_large_call_wait_for_room_and_small_calls_do_not() {
        let links = links(2);
        let _held = links[0].hold(Class::Bulk, 1 << 20);
        check(&links, &Tried::default(), Share::Part, "w1");
        let _more = links[1].hold(Class::Bulk, 1 << 21);
        check(&links, &Tried::default(), Share::Part, "full");
        check(&links, &Tried::default(), Share::Whole, "w0");
    }
}
