use model::Sequence;
use proptest::prelude::*;
use tokio::sync::mpsc;
use tracing::Span;

use super::*;
use crate::call::Answer;

const BUDGET: usize = 128;
const AGE: Duration = Duration::from_secs(5);

/// A call to be made: who, how urgent, by when in seconds, and texts of how many tokens.
#[derive(Clone, Debug)]
struct Ask {
    digest: &'static str,
    caller: &'static str,
    class: Class,
    deadline: Option<u64>,
    lengths: Vec<usize>,
}

fn ask(caller: &'static str, class: Class, lengths: &[usize]) -> Ask {
    Ask { digest: "m", caller, class, deadline: None, lengths: lengths.to_vec() }
}

/// A queue, and the callers at the other end.
struct Desk {
    queue: Queue,
    budgets: HashMap<Arc<str>, Budget>,
    start: Instant,
    now: Instant,
    next: u64,
    answers: Vec<mpsc::Receiver<Answer>>,
}

impl Desk {
    fn new() -> Self {
        let now = Instant::now();
        let budgets = HashMap::from(["m", "n"].map(|digest| (digest.into(), Budget::fixed(BUDGET))));
        Self { queue: Queue::default(), budgets, start: now, now, next: 0, answers: Vec::new() }
    }

    fn push(&mut self, ask: &Ask) -> Range<u64> {
        let serials = self.next..self.next + ask.lengths.len() as u64;
        self.next = serials.end;
        let (sender, receiver) = mpsc::channel(ask.lengths.len().max(1));
        self.answers.push(receiver);
        let call = Arc::new(Call {
            serials: serials.clone(),
            model: ask.digest.into(),
            digest: ask.digest.into(),
            caller: ask.caller.into(),
            class: ask.class,
            arrived: self.now,
            deadline: ask.deadline.map(|seconds| self.start + Duration::from_secs(seconds)),
            answers: sender,
            span: Span::none(),
        });
        for (serial, &tokens) in serials.clone().zip(&ask.lengths) {
            let sequence = Sequence::single(vec![7; tokens]);
            self.queue.push(Entry { call: call.clone(), serial, sequence });
        }
        serials
    }

    fn cut(&mut self) -> Cut {
        self.queue.cut(self.now, Bounds { budgets: &self.budgets, age: AGE })
    }

    fn batch(&mut self) -> Vec<u64> {
        serials(&self.cut().batch)
    }
}

fn serials(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.serial).collect()
}

/// Pushes `asks`, then compares all batches.
#[track_caller]
fn check(asks: &[Ask], expected: &[&[u64]]) {
    let mut desk = Desk::new();
    for ask in asks {
        desk.push(ask);
    }
    let batches: Vec<Vec<u64>> =
        std::iter::from_fn(|| Some(desk.batch())).take_while(|batch| !batch.is_empty()).collect();
    assert_eq!(batches, expected);
}

use Class::{Bulk, Interactive};

#[test]
fn first_come_first_served_up_to_the_budget() {
    check(&[], &[]);
    check(&[ask("a", Interactive, &[40, 40]), ask("a", Interactive, &[40])], &[&[0, 1, 2]]);
    check(&[ask("a", Interactive, &[50, 50]), ask("a", Interactive, &[50])], &[&[0, 1], &[2]]);
}

#[test]
fn interactive_overtakes_bulk() {
    check(&[ask("a", Bulk, &[50, 50]), ask("a", Interactive, &[50, 50])], &[&[2, 3], &[0, 1]]);
    check(&[ask("a", Bulk, &[5]), ask("b", Interactive, &[5])], &[&[1], &[0]]);
}

#[test]
fn the_earlier_deadline_goes_first() {
    let late = Ask { deadline: Some(90), ..ask("a", Interactive, &[100]) };
    let soon = Ask { deadline: Some(50), ..ask("a", Interactive, &[100]) };
    let never = ask("a", Interactive, &[100]);
    check(&[never.clone(), late.clone(), soon.clone()], &[&[2], &[1], &[0]]);
    // Also between callers whose turns are in one round.
    check(&[Ask { caller: "b", ..late }, soon], &[&[1], &[0]]);
}

#[test]
fn a_batch_is_for_one_checkpoint() {
    let other = Ask { digest: "n", ..ask("a", Interactive, &[30]) };
    check(&[ask("a", Interactive, &[30]), other, ask("a", Interactive, &[30])], &[&[0, 2], &[1]]);
}

#[test]
fn callers_take_turns_however_much_each_sends() {
    let flood: Vec<Ask> = (0..6).map(|_| ask("flood", Interactive, &[100])).collect();
    let asks = [flood, vec![ask("small", Interactive, &[100]), ask("small", Interactive, &[100])]].concat();
    check(&asks, &[&[0], &[1], &[6], &[7], &[2], &[3], &[4], &[5]]);
}

#[test]
fn who_comes_late_starts_level() {
    let mut desk = Desk::new();
    desk.push(&ask("old", Interactive, &[100; 20]));
    for _ in 0..10 {
        desk.batch();
    }
    let new = desk.push(&ask("new", Interactive, &[100; 20]));
    let news = (0..10).filter(|_| new.contains(&desk.batch()[0])).count();
    assert!((4..=6).contains(&news), "{news} of 10 batches went to the newcomer");
}

#[test]
fn a_pause_is_neither_saved_nor_held_against() {
    let mut desk = Desk::new();
    let mut fast = 0;
    desk.push(&ask("steady", Interactive, &[100; 40]));
    // One text at a time, the next only after the last: gone in between, and still at most level.
    desk.push(&ask("fast", Interactive, &[100]));
    for _ in 0..20 {
        let batch = desk.cut().batch;
        if &*batch[0].call.caller == "fast" {
            fast += 1;
            desk.push(&ask("fast", Interactive, &[100]));
        }
    }
    assert!((8..=11).contains(&fast), "{fast} of 20");
}

#[test]
fn aged_work_leads_every_other_batch() {
    let mut desk = Desk::new();
    let bulk = desk.push(&ask("job", Bulk, &[100; 10]));
    desk.push(&ask("person", Interactive, &[100; 4]));
    assert!((0..4).all(|_| !bulk.contains(&desk.batch()[0])));
    desk.push(&ask("person", Interactive, &[100; 4]));
    desk.now += AGE;
    desk.push(&ask("person", Interactive, &[100; 4]));
    let bulks: Vec<bool> = (0..6).map(|_| bulk.contains(&desk.batch()[0])).collect();
    assert_eq!(bulks, [true, false, true, false, true, false]);
}

#[test]
fn a_text_without_a_deadline_outlives_those_with_one() {
    let mut desk = Desk::new();
    let patient = desk.push(&ask("a", Interactive, &[100]));
    desk.now += AGE;
    for _ in 0..3 {
        desk.push(&Ask { deadline: Some(60), ..ask("a", Interactive, &[100]) });
    }
    assert_eq!(desk.batch(), [patient.start]);
}

#[test]
fn the_dead_are_dropped_where_they_are_met() {
    let mut desk = Desk::new();
    desk.push(&Ask { deadline: Some(1), ..ask("a", Interactive, &[10, 10]) });
    desk.push(&ask("gone", Interactive, &[10, 10, 10]));
    desk.push(&ask("a", Interactive, &[10]));
    desk.answers.remove(1);
    desk.now += Duration::from_secs(1);
    let cut = desk.cut();
    assert_eq!((serials(&cut.batch), serials(&cut.expired), cut.cancelled), (vec![5], vec![0, 1], 3));
    assert!(desk.queue.is_empty());
}

#[test]
fn forgotten_texts_are_gone() {
    let mut desk = Desk::new();
    let first = desk.push(&ask("a", Interactive, &[100, 100]));
    desk.push(&ask("a", Interactive, &[10]));
    assert_eq!(desk.batch(), [0]);
    assert_eq!(desk.queue.forget(first), 1);
    assert_eq!(desk.batch(), [2]);
    assert!(desk.queue.is_empty() && desk.queue.interactive.lanes.is_empty());
}

#[test]
fn an_unknown_checkpoint_still_moves() {
    check(&[Ask { digest: "?", ..ask("a", Interactive, &[3, 3]) }], &[&[0], &[1]]);
}

/// What may happen to a queue.
#[derive(Clone, Debug)]
enum Step {
    Push(Ask),
    Cut,
    /// The caller of this call, counted from the first, goes away.
    Leave(usize),
    /// The same, and the queue is told.
    Forget(usize),
    /// So many seconds pass.
    Wait(u64),
}

fn asks() -> impl Strategy<Value = Ask> {
    let digest = prop_oneof![Just("m"), Just("n")];
    let caller = prop_oneof![Just("a"), Just("b"), Just("c")];
    let class = prop_oneof![Just(Interactive), Just(Bulk)];
    let lengths = prop::collection::vec(prop_oneof![Just(10_usize), 1..40_usize, 100..300_usize], 1..12);
    (digest, caller, class, prop::option::of(1..60_u64), lengths).prop_map(
        |(digest, caller, class, deadline, lengths)| Ask { digest, caller, class, deadline, lengths },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => asks().prop_map(Step::Push),
        5 => Just(Step::Cut),
        1 => (0..20_usize).prop_map(Step::Leave),
        1 => (0..20_usize).prop_map(Step::Forget),
        1 => (0..4_u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn nothing_is_lost_or_taken_twice_and_every_batch_is_lawful(steps in steps()) {
        let mut desk = Desk::new();
        let mut ranges = Vec::new();
        let (mut seen, mut silent) = (std::collections::BTreeSet::new(), 0);
        for step in steps {
            match step {
                Step::Push(ask) => ranges.push(desk.push(&ask)),
                Step::Wait(seconds) => desk.now += Duration::from_secs(seconds),
                Step::Leave(at) => if let Some(answers) = desk.answers.get_mut(at) { answers.close() },
                Step::Forget(at) => if let Some(range) = ranges.get(at) {
                    silent += desk.queue.forget(range.clone());
                },
                Step::Cut => {
                    let empty = desk.queue.is_empty();
                    let cut = desk.cut();
                    lawful(&cut, desk.now)?;
                    prop_assert!(empty || cut.batch.len() + cut.expired.len() + cut.cancelled > 0);
                    silent += cut.cancelled;
                    for entry in cut.batch.iter().chain(&cut.expired) {
                        prop_assert!(seen.insert(entry.serial), "{} came twice", entry.serial);
                    }
                }
            }
        }
        prop_assert_eq!(seen.len() + silent + desk.queue.len(), usize::try_from(desk.next).unwrap());
    }

    #[test]
    fn nobody_is_overtaken_by_an_equal(asks in prop::collection::vec(asks(), 1..12)) {
        let mut desk = Desk::new();
        for ask in &asks {
            desk.push(ask);
        }
        while !desk.queue.is_empty() {
            for taken in desk.cut().batch {
                let place = place_of(&taken.call, taken.serial);
                let side = desk.queue.side(taken.call.class);
                let Some(lane) = side.lanes.get(&lane_of(&taken.call)) else { continue };
                let overtaken = |(at, entry): (&Place, &Entry)| {
                    *at < place && entry.sequence.tokens() == taken.sequence.tokens()
                };
                prop_assert!(!lane.iter().any(overtaken));
            }
        }
    }

    #[test]
    fn busy_callers_stay_within_two_budgets_of_each_other(
        lengths in prop::collection::vec(prop::collection::vec(1..60_usize, 150..250), 3),
    ) {
        let mut desk = Desk::new();
        for (caller, lengths) in ["a", "b", "c"].into_iter().zip(&lengths) {
            desk.push(&ask(caller, Interactive, lengths));
        }
        let mut got: HashMap<Arc<str>, usize> = HashMap::new();
        while desk.queue.interactive.lanes.len() == 3 {
            for entry in desk.cut().batch {
                *got.entry(entry.call.caller.clone()).or_default() += entry.sequence.tokens();
            }
            let of = |caller: &str| got.get(caller).copied().unwrap_or(0);
            let all = [of("a"), of("b"), of("c")];
            let spread = all.iter().max().unwrap() - all.iter().min().unwrap();
            prop_assert!(spread <= 2 * BUDGET + 60, "{all:?}");
        }
    }

    #[test]
    fn bulk_is_served_under_any_flood(flood in prop::collection::vec(1..60_usize, 1..20), bulk in 1..60_usize) {
        let mut desk = Desk::new();
        desk.push(&ask("job", Bulk, &[bulk]));
        let mut cuts = 0;
        while desk.cut().batch.iter().all(|entry| entry.call.class == Interactive) {
            desk.push(&ask("crowd", Interactive, &flood));
            desk.now += Duration::from_secs(1);
            cuts += 1;
            prop_assert!(cuts < 8);
        }
    }
}

fn lawful(cut: &Cut, now: Instant) -> Result<(), TestCaseError> {
    let lengths: Vec<usize> = cut.batch.iter().map(|entry| entry.sequence.tokens()).collect();
    prop_assert!(lengths.len() <= 1 || schedule::batch_work(&lengths) <= BUDGET);
    prop_assert!(cut.batch.iter().all(|entry| !entry.call.is_cancelled() && !entry.call.is_expired(now)));
    prop_assert!(cut.batch.windows(2).all(|pair| pair[0].call.digest == pair[1].call.digest));
    prop_assert!(cut.expired.iter().all(|entry| entry.call.is_expired(now)));
    Ok(())
}
