//! A record in which all is well, and copies of it in which one thing is not.

use super::super::record::{Failure, Left};
use super::*;

const NAMES: [&str; 8] = ["nothing", "failed", "fled", "mixed", "moved", "went back", "misnamed", "split"];

fn name(flaw: &Flaw) -> &'static str {
    NAMES[match flaw {
        Flaw::Nothing => 0,
        Flaw::Failed(_) => 1,
        Flaw::Fled(_) => 2,
        Flaw::Mixed(_) => 3,
        Flaw::Moved(_) => 4,
        Flaw::WentBack(..) => 5,
        Flaw::Misnamed(..) => 6,
        Flaw::Split(..) => 7,
    }]
}

/// A call of two texts by `caller` at `gateway`, sent at `sent` and answered 10 later by `digest` under `epoch`.
fn call(caller: &str, gateway: &str, sent: u64, digest: &str, epoch: u64) -> Entry {
    let digest = Digest::from(digest);
    let made_by = vec![Some(digest.clone()); 2];
    Entry {
        caller: caller.to_owned(),
        gateway: gateway.to_owned(),
        left: Vec::new(),
        model: "m".to_owned(),
        call: Call::Embed,
        pinned: sent,
        sent,
        ended: sent + 10,
        min_epoch: 0,
        texts: 2,
        result: Ok(Answer { digest, epoch, made_by }),
    }
}

/// A request of stream `number`, which was opened at `opened`.
fn item(number: u64, opened: u64, call: Entry) -> Entry {
    Entry { call: Call::Item(number), pinned: opened, ..call }
}

fn gone() -> Failure {
    Failure { code: "Unavailable".to_owned(), message: "gone".to_owned() }
}

fn failing(call: Entry) -> Entry {
    Entry { result: Err(gone()), ..call }
}

/// A call that was at `gateways` before, and lost each at the time given.
fn after(gateways: &[(u64, &str)], call: Entry) -> Entry {
    let left = |&(at, gateway): &(u64, &str)| Left { at, gateway: gateway.to_owned(), failure: gone() };
    Entry { left: gateways.iter().map(left).collect(), ..call }
}

fn answer(entry: &mut Entry) -> &mut Answer {
    entry.result.as_mut().unwrap()
}

fn known(at: u64, gateway: Option<&str>, epoch: u64) -> Note {
    Note::Known { at, gateway: gateway.map(str::to_owned), model: "m".to_owned(), epoch }
}

fn meaning(epoch: u64, digest: &str, canary: Option<&str>) -> Note {
    Note::Meaning { model: "m".to_owned(), epoch, digest: digest.into(), canary: canary.map(Digest::from) }
}

/// From `a` to `b` at about 120: gateway `h` learns of it later than `g`, and a stream outlives it.
fn well() -> Record {
    let entries = vec![
        call("ann", "g", 100, "a", 1),
        call("bob", "h", 105, "a", 1),
        item(7, 101, call("eve", "g", 102, "a", 1)),
        call("ann", "g", 120, "b", 2),
        call("bob", "h", 121, "a", 1), // `h` has not heard of it.
        item(7, 101, call("eve", "g", 140, "a", 1)),
        Entry { min_epoch: 2, ..call("ann", "h", 150, "b", 2) },
        call("bob", "h", 170, "b", 2),
        item(8, 180, call("eve", "g", 181, "b", 2)),
    ];
    let notes =
        vec![meaning(1, "a", None), meaning(2, "b", None), known(119, Some("g"), 2), known(160, None, 2)];
    Record { entries, notes }
}

/// The kinds of flaws in the well record after `change`, each once.
#[track_caller]
fn check(change: impl FnOnce(&mut Record), expected: &[&str]) {
    let mut record = well();
    change(&mut record);
    let mut found: Vec<_> = flaws(&record).iter().map(name).collect();
    found.dedup();
    assert_eq!(found, expected);
    record.entries.reverse();
    let mut reversed: Vec<_> = flaws(&record).iter().map(name).collect();
    reversed.dedup();
    assert_eq!(reversed, expected, "the order in which entries were written is no matter");
}

#[test]
fn a_record_in_which_all_is_well_has_no_fault() {
    check(|_| {}, &[]);
}

#[test]
fn a_record_without_an_answer_shows_nothing() {
    check(|record| record.entries.clear(), &["nothing"]);
    check(|record| record.entries = vec![failing(call("ann", "g", 1, "a", 1))], &["nothing", "failed"]);
}

#[test]
fn a_call_that_failed_is_found() {
    check(|record| record.entries.push(failing(call("ann", "g", 200, "b", 2))), &["failed"]);
    let killed = |record: &mut Record| {
        record.entries.push(failing(call("ann", "g", 200, "b", 2)));
        record.notes.push(Note::Killed { at: 205, gateway: "g".to_owned() });
    };
    check(killed, &["failed"]);
}

#[test]
fn a_gateway_that_was_left_without_having_been_killed_is_found() {
    let moving = |left: &'static [(u64, &str)], killed: &'static [(u64, &str)]| {
        move |record: &mut Record| {
            record.entries.push(after(left, call("ann", "h", 200, "b", 2)));
            let note = |&(at, gateway): &(u64, &str)| Note::Killed { at, gateway: gateway.to_owned() };
            record.notes.extend(killed.iter().map(note));
        }
    };
    check(moving(&[(203, "g")], &[(202, "g")]), &[]);
    check(moving(&[(203, "g")], &[]), &["fled"]);
    check(moving(&[(203, "g")], &[(204, "g")]), &["fled"]);
    check(moving(&[(203, "g")], &[(202, "h")]), &["fled"]);
    check(moving(&[(203, "g"), (204, "k")], &[(202, "g")]), &["fled"]);
    check(moving(&[(203, "g"), (204, "k")], &[(202, "g"), (202, "k")]), &[]);
}

#[test]
fn a_caller_that_is_taken_back_by_the_next_gateway_is_found() {
    let back = |digest: &'static str, epoch| {
        move |record: &mut Record| {
            let at_k = call("ann", "k", 155, digest, epoch);
            record.entries.push(after(&[(154, "h")], Entry { sent: 125, ..at_k }));
            record.notes.push(Note::Killed { at: 151, gateway: "h".to_owned() });
        }
    };
    check(back("a", 1), &["went back"]);
    check(back("b", 2), &[]);
}

#[test]
fn a_vector_of_another_checkpoint_is_found() {
    let make = |maker: Option<&str>| {
        let maker = maker.map(Digest::from);
        move |record: &mut Record| answer(&mut record.entries[3]).made_by[1] = maker
    };
    check(make(Some("a")), &["mixed"]);
    check(make(None), &["mixed"]);
    check(make(Some("b")), &[]);
}

#[test]
fn a_vector_too_few_or_too_many_is_found() {
    check(|record| record.entries[3].texts = 3, &["mixed"]);
    check(|record| record.entries[3].texts = 1, &["mixed"]);
}

#[test]
fn an_answer_all_of_another_checkpoint_than_it_names_is_found() {
    let swap = |record: &mut Record| answer(&mut record.entries[3]).made_by = vec![Some("a".into()); 2];
    check(swap, &["mixed"]);
}

#[test]
fn a_stream_that_moves_is_found() {
    let moving = |record: &mut Record| record.entries[5].result = call("", "", 0, "b", 2).result;
    check(moving, &["moved"]);
    // Another caller's stream of the same number is another stream.
    let other = |record: &mut Record| {
        record.entries[5] = item(7, 139, call("ann", "g", 140, "b", 2));
    };
    check(other, &[]);
}

#[test]
fn a_caller_that_is_taken_back_is_found() {
    check(|record| record.entries.push(call("ann", "k", 155, "a", 1)), &["went back"]);
    // Not so where nothing had been answered before it began.
    check(|record| record.entries.push(call("ann", "k", 125, "a", 1)), &[]);
    // What counts of a stream is when it was opened.
    check(|record| record.entries.push(item(9, 125, call("ann", "k", 155, "a", 1))), &[]);
    check(|record| record.entries.push(item(9, 155, call("ann", "k", 158, "a", 1))), &["went back"]);
}

#[test]
fn a_gateway_that_goes_back_is_found() {
    check(|record| record.entries.push(call("joe", "g", 135, "a", 1)), &["went back"]);
    check(|record| record.entries.push(call("joe", "k", 135, "a", 1)), &[]);
}

#[test]
fn an_epoch_older_than_was_asked_for_is_found() {
    check(|record| record.entries[4].min_epoch = 2, &["went back"]);
    check(|record| record.entries[4].min_epoch = 1, &[]);
}

#[test]
fn an_answer_from_before_what_the_operator_knows_is_found() {
    check(|record| record.notes.push(known(120, Some("h"), 2)), &["went back"]);
    check(|record| record.notes.push(known(120, None, 2)), &["went back"]);
    check(|record| record.notes.push(known(122, Some("h"), 2)), &[]);
    let of_another_model = Note::Known { at: 120, gateway: None, model: "n".to_owned(), epoch: 2 };
    check(|record| record.notes.push(of_another_model), &[]);
}

#[test]
fn two_checkpoints_under_one_epoch_are_found() {
    let unnoted = |record: &mut Record| record.notes.retain(|note| !matches!(note, Note::Meaning { .. }));
    check(unnoted, &[]);
    let two = |record: &mut Record| {
        unnoted(record);
        record.entries[7].result = call("", "", 0, "c", 2).result;
    };
    check(two, &["misnamed"]);
    check(|record| record.notes.push(meaning(2, "c", None)), &["misnamed"]);
}

#[test]
fn a_canary_is_one_of_two_checkpoints_and_never_splits_a_caller() {
    let canary = |digest: &'static str| {
        move |record: &mut Record| {
            record.notes.push(meaning(2, "b", Some("c")));
            record.entries.push(call("joe", "g", 200, digest, 2));
        }
    };
    check(canary("c"), &[]);
    check(canary("d"), &["misnamed"]);
    let splitting = |record: &mut Record| {
        canary("c")(record);
        record.entries.push(call("joe", "g", 220, "b", 2));
    };
    check(splitting, &["split"]);
}

#[test]
fn a_record_that_was_written_is_read_back() {
    let mut record = well();
    record.entries.push(after(&[(201, "k")], failing(call("ann", "g", 200, "b", 2))));
    answer(&mut record.entries[0]).made_by[0] = None;
    record.notes.push(Note::Killed { at: 3, gateway: "g".to_owned() });
    let file = tempfile::NamedTempFile::new().unwrap();
    record.write(file.path()).unwrap();
    assert_eq!(Record::read(file.path()).unwrap(), record);
}
