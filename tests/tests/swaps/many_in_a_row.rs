//! Swap after swap.

use crate::support::{KIN, plan, stage};

const SWAPS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_swaps_in_a_row_are_noticed_by_nobody() {
    let mut stage = stage(plan(2)).await;
    for turn in 1..=SWAPS {
        let swap = stage.swap_to(turn % KIN).await;
        assert_eq!(swap.epoch, 1 + turn as u64);
    }
    let digests = stage.digests[..KIN].to_vec();
    let record = stage.flawless().await;
    let answered = record.summary(0..u64::MAX).digests;
    assert_eq!(
        answered.into_keys().collect::<std::collections::BTreeSet<_>>(),
        digests.into_iter().collect()
    );
}
