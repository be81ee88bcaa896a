//! A seeded simulator of a cluster that swaps, and the laws that hold in it whatever happens.
//!
//! The decisions are the real ones: [`Helm`](crate::swap::Helm), [`desired`](crate::desired()), what people ask for, and how
//! members keep their leases and entries ([`Tenure`](crate::tenure::Tenure)). Around them is a small world: an etcd that
//! carries transactions out as etcd does, workers that load and let go, gateways that answer calls from views as old as you
//! like, and a wire that delays, loses, doubles and reorders whatever anybody asks of etcd. A schedule is what one seed makes
//! happen to one model, or to two that share all of it; a broken law names the seed, and the schedule is told event by
//! event.
//!
//! That the etcd in memory refuses what a real one refuses is held against a real one ([`real`]).
//!
//! `BEIGE_SIM_SEED=n` runs schedule `n` alone; `BEIGE_SIM_SCHEDULES=n` runs so many, from `BEIGE_SIM_FIRST` on. That the laws can fail is shown by
//! breaking the rules one by one ([`Rule`](sabotage::Rule)).

#![allow(clippy::wildcard_enum_match_arm, reason = "of many kinds of keys and writes a law looks at one")]

mod calls;
mod calm;
mod etcd;
mod gateway;
mod laws;
mod member;
mod operator;
mod random;
mod real;
mod sabotage;
mod tally;
mod trouble;
mod wire;
mod worker;
mod world;

use std::env;

use laws::Broken;
use sabotage::Rule;
use tally::Tally;
use world::World;

/// Schedules of the ordinary run.
const SCHEDULES: u64 = 100_000;

/// Schedules within which each broken rule is found, by the law that it is there for.
const HUNT: u64 = 100_000;

/// Runs the schedule of `seed`, with `broken` broken.
fn run(seed: u64, broken: Option<Rule>, told: bool) -> (Result<(), Broken>, World) {
    let mut world = World::new(seed, broken, told);
    let result = world.run();
    (result, world)
}

/// The schedule of `seed` as it went, and the law that it broke.
fn tell(seed: u64, broken: Option<Rule>) -> String {
    let (result, world) = run(seed, broken, true);
    let law = result.err().map_or_else(|| "no law was broken".to_owned(), |law| law.to_string());
    format!("seed {seed}: {law}\n{}", world.told())
}

#[allow(clippy::disallowed_methods, reason = "a test, not a service")]
fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn the_laws_hold_in_every_schedule() {
    if let Some(seed) = number("BEIGE_SIM_SEED") {
        let told = tell(seed, None);
        println!("{told}");
        assert!(run(seed, None, false).0.is_ok(), "{told}");
        return;
    }
    let schedules = number("BEIGE_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("BEIGE_SIM_FIRST").unwrap_or(0);
    println!("schedules {first} to {}", first + schedules);
    let threads = std::thread::available_parallelism().map_or(2, |cores| cores.get() as u64);
    let part = |thread: u64| {
        let mut tally = Tally::default();
        for seed in (first..first + schedules).filter(|seed| seed % threads == thread) {
            let (result, world) = run(seed, None, false);
            assert!(result.is_ok(), "BEIGE_SIM_SEED={seed}\n{}", tell(seed, None));
            tally.add(&world.tally);
        }
        tally
    };
    let tally = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        parts.into_iter().fold(Tally::default(), |mut sum, part| {
            sum.add(&part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            sum
        })
    });
    println!("{tally}");
    tally.assert_everything_happens(schedules);
}

#[test]
fn a_schedule_is_the_same_each_time() {
    for seed in 0..50 {
        assert_eq!(tell(seed, None), tell(seed, None));
    }
}

#[test]
fn every_broken_rule_is_found() {
    // Whoever is done with a rule takes the next one.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let hunt = || {
        while let Some(rule) = Rule::ALL.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            find(*rule);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let hunters: Vec<_> = (0..threads).map(|_| scope.spawn(hunt)).collect();
        for hunter in hunters {
            hunter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// Holds that the law that `rule` is there for is seen to break where `rule` is broken, and not where it is not.
fn find(rule: Rule) {
    let mut others = 0;
    let found = (0..HUNT).find_map(|seed| {
        let law = run(seed, Some(rule), false).0.err()?;
        others += u32::from(!rule.is_for(&law));
        rule.is_for(&law).then_some((seed, law))
    });
    let (seed, law) =
        found.unwrap_or_else(|| panic!("{rule:?} was not found; {others} times another law broke"));
    assert!(run(seed, None, false).0.is_ok(), "{rule:?}: with seed {seed} a law breaks anyhow: {law}");
    println!("{rule:?}: seed {seed}, another law broke before it {others} times: {law}");
}
