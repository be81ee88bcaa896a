//! Which checkpoints calls and streams of this gateway are on: what the cluster's leader looks at before it lets
//! workers forget one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cluster::Name;

use crate::checkpoint::Digest;

/// Calls and open streams by the checkpoint they are pinned to.
#[derive(Debug, Default)]
pub struct Busy(Mutex<HashMap<(Name, Digest), usize>>);

/// A call or stream on a checkpoint; no longer so when dropped.
#[derive(Debug)]
pub struct Hold {
    busy: Arc<Busy>,
    on: (Name, Digest),
}

impl Busy {
    /// Counts a call or stream of `model` on `digest` until the hold is dropped.
    #[must_use]
    pub fn hold(self: &Arc<Self>, model: &Name, digest: &Digest) -> Hold {
        let on = (model.clone(), digest.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(on.clone()).or_default() += 1;
        Hold { busy: Arc::clone(self), on }
    }

    /// How many calls and streams are on each checkpoint; those that nobody is on are left out.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(Name, Digest), usize> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(on, count)| (on.clone(), *count)).collect()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = self.busy.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.on) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.on);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_busy_until_the_last_hold_is_dropped() {
        let busy = Arc::new(Busy::default());
        let (model, digest) = (Name::parse("m").unwrap(), Digest::from("d"));
        let holds = [busy.hold(&model, &digest), busy.hold(&model, &digest)];
        let _other = busy.hold(&model, &Digest::from("e"));
        let count = || busy.counts().get(&(model.clone(), digest.clone())).copied();
        assert_eq!(count(), Some(2));
        let [first, second] = holds;
        drop(first);
        assert_eq!(count(), Some(1));
        drop(second);
        assert_eq!((count(), busy.counts().len()), (None, 1));
    }
}
