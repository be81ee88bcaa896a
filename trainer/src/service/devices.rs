//! The devices of a trainer, and which of them are taken.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::Device;
use torch_ext::Group;

/// Devices by their places in the list they were named in. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Devices {
    all: Arc<[Device]>,
    free: Arc<Mutex<BTreeSet<usize>>>,
}

/// Devices that one job has, until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Devices,
    places: Vec<usize>,
}

impl Devices {
    /// None of them is taken.
    pub(super) fn new(all: &[Device]) -> Self {
        Self { all: all.into(), free: Arc::new(Mutex::new((0..all.len()).collect())) }
    }

    /// How many there are, free or not.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// The first `count` that are free; none where there are fewer.
    pub(super) fn take(&self, count: usize) -> Option<Share> {
        let mut free = self.free();
        if free.len() < count {
            return None;
        }
        let places: Vec<usize> = free.iter().take(count).copied().collect();
        for place in &places {
            free.remove(place);
        }
        drop(free);
        Some(Share { of: self.clone(), places })
    }

    fn free(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        // A set of numbers is whole between any two steps.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Which they are.
    pub(super) fn devices(&self) -> Vec<Device> {
        self.places.iter().map(|&place| self.of.all[place]).collect()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.free().extend(self.places.drain(..));
    }
}

/// The devices that an operator names, or `cores` times the processor. Ranks of a job must be able to meet on any of them.
///
/// # Errors
/// A sentence.
pub(super) fn parse(named: &[String], cores: usize) -> Result<Vec<Device>, String> {
    if named.is_empty() {
        return Ok(vec![Device::Cpu; cores]);
    }
    let devices = named.iter().map(|name| Device::parse(name).map_err(|error| error.to_string()));
    let devices = devices.collect::<Result<Vec<_>, _>>()?;
    let on_cuda: Vec<Device> = devices.iter().copied().filter(|device| *device != Device::Cpu).collect();
    if on_cuda.is_empty() {
        return Ok(devices);
    }
    if on_cuda.len() < devices.len() {
        return Err(
            "ranks on processors and ranks on CUDA devices do not meet: a trainer has the one or the other"
                .into(),
        );
    }
    let twice = on_cuda.iter().enumerate().find(|(at, device)| on_cuda[..*at].contains(device));
    if let Some((_, device)) = twice {
        return Err(format!("{device} is named twice, and takes one rank"));
    }
    if on_cuda.len() > 1 && !Group::HAS_NCCL {
        let reason = "ranks on several CUDA devices meet by NCCL, and this build has none: build it with \
                      `--features trainer/nccl`, or start a trainer for each device";
        return Err(reason.to_owned());
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_jobs_have_a_device() {
        let devices = Devices::new(&[Device::Cuda(4), Device::Cuda(2), Device::Cuda(0)]);
        let first = devices.take(2).unwrap();
        assert_eq!(first.devices(), [Device::Cuda(4), Device::Cuda(2)]);
        assert!(devices.take(2).is_none());
        let second = devices.take(1).unwrap();
        assert_eq!(second.devices(), [Device::Cuda(0)]);
        assert!(devices.take(1).is_none() && devices.take(0).is_some());
        drop(first);
        let third = devices.take(1).unwrap();
        assert_eq!(third.devices(), [Device::Cuda(4)]);
        drop((second, third));
        assert_eq!(devices.take(3).unwrap().devices(), [Device::Cuda(4), Device::Cuda(2), Device::Cuda(0)]);
        assert!(devices.take(4).is_none());
    }

    #[track_caller]
    fn check(named: &[&str], expected: Result<&[Device], &str>) {
        let named: Vec<String> = named.iter().map(|&name| name.to_owned()).collect();
        match (parse(&named, 3), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (found, _) => panic!("{named:?}: {found:?}"),
        }
    }

    #[test]
    fn devices_are_those_that_ranks_can_meet_on() {
        check(&[], Ok(&[Device::Cpu; 3]));
        check(&["cpu", "cpu"], Ok(&[Device::Cpu; 2]));
        check(&["cuda:1"], Ok(&[Device::Cuda(1)]));
        check(&["cpu", "tpu"], Err("not \"tpu\""));
        check(&["cpu", "cuda:0"], Err("the one or the other"));
        check(&["cuda:0", "cuda"], Err("cuda:0 is named twice"));
        if Group::HAS_NCCL {
            check(&["cuda:1", "cuda:0"], Ok(&[Device::Cuda(1), Device::Cuda(0)]));
        } else {
            check(&["cuda:1", "cuda:0"], Err("--features trainer/nccl"));
        }
    }
}
