//! What waits for the device, and who goes first.
//!
//! A queue is plain data: the same pushes and cuts, at the same instants, give the same batches. It keeps these laws:
//!
//! * **One batch, one checkpoint**, within a budget of work ([`schedule::fill`]).
//! * **Interactive before bulk.** A batch led in turn holds one class.
//! * **Fair between callers**, within a class: each caller is charged the tokens it got. Turns go in rounds of one
//!   budget, so that a caller who stays busy is never more than about two budgets ahead of another, however many
//!   calls or texts each of them sends. Who comes back after a pause starts level with the others: idle time is
//!   neither saved nor held against anyone.
//! * **Deadline first**, within a round and within a caller; then first come, first served.
//! * **Nobody starves.** Once the oldest text has waited longer than a bound, every other batch is led by age alone,
//!   over classes, callers and deadlines. Every other and not each, or a deep backlog of bulk work, once it had
//!   aged, would lock interactive work out.
//! * **Dead work costs nothing.** A cancelled or expired text is dropped when it is met.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, HashMap, btree_map};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::call::{Call, Class, Entry};
use crate::pace::Budget;
use crate::schedule::{self, LOOK_AHEAD};

/// Place in a lane: with a deadline before without, the earlier deadline first, then by arrival.
type Place = (bool, Option<Instant>, u64);

/// The waiting texts of one caller for one checkpoint, in one class.
type Lane = BTreeMap<Place, Entry>;

/// A checkpoint's digest and a caller.
type LaneKey = (Arc<str>, Arc<str>);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// How much one batch of each checkpoint may hold; a single text for one that is not known.
    pub budgets: &'a HashMap<Arc<str>, Budget>,
    /// Age beyond which a text leads a batch.
    pub age: Duration,
}

impl Bounds<'_> {
    /// Tokens in a round of turns. The smallest budget, so that callers of any checkpoint can be compared.
    fn round(&self) -> u64 {
        self.budgets.values().map(Budget::tokens).min().unwrap_or(1) as u64
    }
}

/// What [`Queue::cut`] takes out.
#[derive(Debug, Default)]
pub struct Cut {
    /// The batch: texts for one checkpoint, none cancelled, none expired. Empty when nothing waits.
    pub batch: Vec<Entry>,
    /// Texts whose deadline has passed, still to be answered.
    pub expired: Vec<Entry>,
    /// How many texts were dropped because their callers are gone.
    pub cancelled: usize,
}

/// Texts waiting for one device.
#[derive(Debug, Default)]
pub struct Queue {
    interactive: Side,
    bulk: Side,
    /// All texts by number, and so by age.
    arrivals: BTreeMap<u64, Arc<Call>>,
    /// Whether the last batch was led by age.
    aged_led: bool,
}

/// One class.
#[derive(Debug, Default)]
struct Side {
    lanes: BTreeMap<LaneKey, Lane>,
    accounts: HashMap<Arc<str>, Account>,
    /// What the caller of the latest leader had been charged before: where newcomers start.
    clock: u64,
}

/// What a caller got.
#[derive(Debug, Default)]
struct Account {
    charged: u64,
    waiting: usize,
}

impl Queue {
    /// Number of waiting texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.arrivals.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arrivals.is_empty()
    }

    /// Lets `entry` wait.
    pub fn push(&mut self, entry: Entry) {
        self.arrivals.insert(entry.serial, entry.call.clone());
        self.side(entry.call.class).push(entry);
    }

    /// Drops the texts with these numbers that still wait; answers how many they were.
    pub fn forget(&mut self, serials: Range<u64>) -> usize {
        let waiting: Vec<u64> = self.arrivals.range(serials).map(|(serial, _)| *serial).collect();
        waiting.into_iter().filter_map(|serial| self.remove(serial)).count()
    }

    /// Takes out the batch to run now, and what need not wait any longer.
    pub fn cut(&mut self, now: Instant, bounds: Bounds<'_>) -> Cut {
        let mut cut = Cut::default();
        while cut.batch.is_empty() && !self.is_empty() {
            let window = self.window(now, bounds);
            self.bury(&window.dead, now, &mut cut);
            let lengths: Vec<usize> = window.waiting.iter().map(|&(_, tokens)| tokens).collect();
            let picks = schedule::fill(&lengths, window.budget);
            cut.batch = picks.into_iter().filter_map(|at| self.take(window.waiting[at].0)).collect();
        }
        self.interactive.settle();
        self.bulk.settle();
        cut
    }

    /// What leads the next batch and may go with it.
    fn window(&mut self, now: Instant, bounds: Bounds<'_>) -> Window {
        let oldest = self.arrivals.values().find(|call| !call.is_cancelled() && !call.is_expired(now));
        let aged = oldest.filter(|call| call.age(now) >= bounds.age).map(|call| call.digest.clone());
        self.aged_led = aged.is_some() && !self.aged_led;
        match aged {
            Some(digest) if self.aged_led => self.by_age(&digest, now, bounds),
            _ if self.interactive.lanes.is_empty() => self.bulk.by_turn(now, bounds),
            _ => self.interactive.by_turn(now, bounds),
        }
    }

    /// The aged texts of one checkpoint, the oldest first.
    fn by_age(&self, digest: &Arc<str>, now: Instant, bounds: Bounds<'_>) -> Window {
        let mut window = Window::new(digest, bounds);
        let aged = self.arrivals.iter().take_while(|(_, call)| call.age(now) >= bounds.age);
        for (&serial, call) in aged.filter(|(_, call)| call.digest == *digest) {
            let Some(entry) = self.peek(serial, call) else { continue };
            if !window.add(entry, now) {
                break;
            }
        }
        window
    }

    fn peek(&self, serial: u64, call: &Call) -> Option<&Entry> {
        let side = match call.class {
            Class::Interactive => &self.interactive,
            Class::Bulk => &self.bulk,
        };
        side.lanes.get(&lane_of(call))?.get(&place_of(call, serial))
    }

    fn bury(&mut self, dead: &[u64], now: Instant, cut: &mut Cut) {
        for entry in dead.iter().filter_map(|&serial| self.remove(serial)) {
            if entry.call.is_expired(now) && !entry.call.is_cancelled() {
                cut.expired.push(entry);
            } else {
                cut.cancelled += 1;
            }
        }
    }

    fn take(&mut self, serial: u64) -> Option<Entry> {
        let entry = self.remove(serial)?;
        let side = self.side(entry.call.class);
        side.charge(&entry.call.caller, entry.sequence.tokens());
        Some(entry)
    }

    fn remove(&mut self, serial: u64) -> Option<Entry> {
        let call = self.arrivals.remove(&serial)?;
        self.side(call.class).remove(&call, serial)
    }

    fn side(&mut self, class: Class) -> &mut Side {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Bulk => &mut self.bulk,
        }
    }
}

impl Side {
    fn push(&mut self, entry: Entry) {
        let account = self.accounts.entry(entry.call.caller.clone()).or_default();
        if account.waiting == 0 {
            account.charged = account.charged.max(self.clock);
        }
        account.waiting += 1;
        let place = place_of(&entry.call, entry.serial);
        self.lanes.entry(lane_of(&entry.call)).or_default().insert(place, entry);
    }

    fn remove(&mut self, call: &Call, serial: u64) -> Option<Entry> {
        let key = lane_of(call);
        let lane = self.lanes.get_mut(&key)?;
        let entry = lane.remove(&place_of(call, serial))?;
        if lane.is_empty() {
            self.lanes.remove(&key);
        }
        if let Some(account) = self.accounts.get_mut(&call.caller) {
            account.waiting -= 1;
        }
        Some(entry)
    }

    fn charge(&mut self, caller: &str, tokens: usize) {
        if let Some(account) = self.accounts.get_mut(caller) {
            account.charged += tokens as u64;
        }
    }

    /// Forgets accounts that say nothing: of callers who have nothing waiting and would start at the clock anyway.
    fn settle(&mut self) {
        let clock = self.clock;
        self.accounts.retain(|_, account| account.waiting > 0 || account.charged > clock);
    }

    fn charged(&self, caller: &str) -> u64 {
        self.accounts.get(caller).map_or(self.clock, |account| account.charged)
    }

    /// The texts of one checkpoint in the order of turns: the checkpoint is the leader's.
    fn by_turn(&mut self, now: Instant, bounds: Bounds<'_>) -> Window {
        let round = bounds.round();
        let Some((digest, leader)) = self.leader(round).cloned() else { return Window::default() };
        self.clock = self.clock.max(self.charged(&leader));
        let mut window = Window::new(&digest, bounds);
        let lanes = self.lanes.iter().filter(|((lane, _), _)| *lane == digest);
        let mut turns: BinaryHeap<Reverse<Turn<'_>>> = lanes
            .filter_map(|((_, caller), lane)| Turn::next(lane.iter(), self.charged(caller), round))
            .map(Reverse)
            .collect();
        while let Some(Reverse(Turn { entry, rest, charged, .. })) = turns.pop() {
            if !window.add(entry, now) {
                break;
            }
            // As if the text were taken: the caller is charged before its next one is looked at.
            turns.extend(Turn::next(rest, charged + entry.sequence.tokens() as u64, round).map(Reverse));
        }
        window
    }

    /// The lane whose first text is the most urgent of all.
    fn leader(&self, round: u64) -> Option<&LaneKey> {
        let urgency = |(key, lane): &(&LaneKey, &Lane)| {
            (self.charged(&key.1) / round, lane.first_key_value().map(|(place, _)| *place))
        };
        self.lanes.iter().min_by_key(urgency).map(|(key, _)| key)
    }
}

/// The next text of a lane, and what follows it.
struct Turn<'a> {
    order: (u64, Place),
    entry: &'a Entry,
    rest: btree_map::Iter<'a, Place, Entry>,
    charged: u64,
}

impl<'a> Turn<'a> {
    fn next(mut rest: btree_map::Iter<'a, Place, Entry>, charged: u64, round: u64) -> Option<Self> {
        let (place, entry) = rest.next()?;
        Some(Self { order: (charged / round, *place), entry, rest, charged })
    }
}

impl PartialEq for Turn<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Turn<'_> {}

impl PartialOrd for Turn<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Turn<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order)
    }
}

/// What a batch is chosen from.
#[derive(Debug, Default)]
struct Window {
    /// Number and tokens of each text, the most urgent first.
    waiting: Vec<(u64, usize)>,
    /// Numbers of the cancelled and expired ones met on the way.
    dead: Vec<u64>,
    budget: usize,
    work: usize,
}

impl Window {
    fn new(digest: &Arc<str>, bounds: Bounds<'_>) -> Self {
        Self { budget: bounds.budgets.get(digest).map_or(0, Budget::tokens), ..Self::default() }
    }

    /// Answers whether there is room for more.
    fn add(&mut self, entry: &Entry, now: Instant) -> bool {
        if entry.call.is_cancelled() || entry.call.is_expired(now) {
            self.dead.push(entry.serial);
        } else {
            let tokens = entry.sequence.tokens();
            self.work += schedule::work(tokens);
            self.waiting.push((entry.serial, tokens));
        }
        self.work < LOOK_AHEAD * self.budget
    }
}

fn lane_of(call: &Call) -> LaneKey {
    (call.digest.clone(), call.caller.clone())
}

fn place_of(call: &Call, serial: u64) -> Place {
    (call.deadline.is_none(), call.deadline, serial)
}

#[cfg(test)]
mod tests;
