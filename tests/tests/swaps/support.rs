//! The stage that scenarios are set on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cluster::View;
use tests::history::{Book, Load};
use tests::{Distance, Plan, Scene, Stage, checkpoint, deep_variant, variant};
use tokio::sync::OnceCell;

/// The name that is moved about.
pub(crate) const MODEL: &str = "bert-cls";

/// Checkpoints that share an index space and are published: the first is what workers are started with.
pub(crate) const KIN: usize = 4;

/// The place of a checkpoint that answers, and much more slowly. It is not published.
pub(crate) const SLOW: usize = KIN;

/// Two gateways and so many workers.
pub(crate) fn plan(workers: usize) -> Plan {
    // Longer than any call here takes.
    let gateway_flags = ["--retire-grace", "2s"].map(str::to_owned).to_vec();
    Plan { gateways: 2, workers, gateway_flags, ..Plan::default() }
}

/// Sets the stage for the checkpoints above.
pub(crate) async fn stage(plan: Plan) -> Stage {
    static BOOK: OnceCell<Arc<Book>> = OnceCell::const_new();
    let checkpoints = checkpoints();
    let book = BOOK.get_or_init(async || Arc::new(Book::of(&checkpoints).await)).await;
    let load = Load { model: MODEL.to_owned(), callers: 16, rest: Duration::from_millis(20), most: 8 };
    Stage::set(Scene { plan, checkpoints, kin: KIN, book: Arc::clone(book), load }).await
}

/// Calls of `model` that gateways have told were tried by what is on trial, too.
pub(crate) fn shadowed(view: &View, model: &str) -> u64 {
    let trials = view.gateways.values().filter_map(|gateway| gateway.trials.get(model));
    trials.map(|trial| trial.sample.shadow.calls).sum()
}

/// Their directories, written once.
fn checkpoints() -> Vec<PathBuf> {
    static DIR: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let write = || {
        let (first, dir) = (PathBuf::from(checkpoint(MODEL)), Path::new(env!("CARGO_TARGET_TMPDIR")));
        let kin = (1..KIN as u64).map(|number| variant(&first, number, Distance::Kin, dir));
        let kin: Vec<_> = kin.collect();
        let slow = deep_variant(120, dir);
        [vec![first], kin, vec![slow]].concat()
    };
    DIR.get_or_init(write).clone()
}
