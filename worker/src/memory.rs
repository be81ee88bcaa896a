//! How much memory there is, how much of it is taken, and whether another checkpoint fits.

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;

use model::{Device, Footprint};

/// Room that is left for batches beside the checkpoints, in bytes.
const MARGIN: u64 = 64 << 20;
/// What the system writes for a control group without a limit, or more.
const NO_LIMIT: u64 = 1 << 60;

/// Where checkpoints lie, and how much they may take.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    device: Device,
    /// As it was asked for.
    limit: Option<NonZeroU64>,
}

/// Why a checkpoint is not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it takes about {wanted} bytes, and of {limit} there are {free} free")]
pub struct Short {
    /// What it would take, with room for batches.
    pub wanted: u64,
    /// What nothing takes yet.
    pub free: u64,
    /// What may be taken in all.
    pub limit: u64,
}

/// Memory of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    free: u64,
    limit: u64,
}

impl Memory {
    /// Of `device`, of which checkpoints may take `limit` bytes, or what there is.
    #[must_use]
    pub fn new(device: Device, limit: Option<NonZeroU64>) -> Self {
        Self { device, limit }
    }

    /// Bytes that checkpoints may take in all; 0 where nobody tells.
    #[must_use]
    pub fn limit(self) -> u64 {
        match (self.limit, self.device.memory()) {
            (Some(limit), _) => limit.get(),
            (None, Some(device)) => device.total,
            (None, None) => of_process(),
        }
    }

    /// Whether a checkpoint fits beside what is there.
    ///
    /// # Errors
    /// [`Short`]. Where the system does not tell what there is, anything fits.
    pub fn fits(self, footprint: Footprint) -> Result<(), Short> {
        let host = host();
        match self.device.memory() {
            Some(device) => {
                let room = Room { free: device.free, limit: device.total };
                check(footprint.device, Some(room.within(self.limit)))?;
                check(footprint.host, host)
            }
            None => check(footprint.device, host.map(|room| room.within(self.limit))),
        }
    }
}

impl Room {
    /// As much of it as `limit` leaves.
    fn within(self, limit: Option<NonZeroU64>) -> Self {
        let Some(limit) = limit else { return self };
        let taken = self.limit.saturating_sub(self.free);
        Self { free: limit.get().saturating_sub(taken), limit: limit.get() }
    }
}

fn check(wanted: u64, room: Option<Room>) -> Result<(), Short> {
    let wanted = wanted.saturating_add(MARGIN);
    match room {
        Some(Room { free, limit }) if wanted > free => Err(Short { wanted, free, limit }),
        Some(_) | None => Ok(()),
    }
}

/// What this process may take, and how much of that it does not take yet.
fn host() -> Option<Room> {
    let limit = Some(of_process()).filter(|limit| *limit > 0)?;
    Some(Room { free: limit.saturating_sub(resident()), limit })
}

/// Memory that this process may take, in bytes: that of its control group, or of the machine; 0 where nobody tells.
#[must_use]
pub fn of_process() -> u64 {
    let machine = of_machine();
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&group).into_iter().filter_map(|file| limit_in(&file));
    limits.chain((machine > 0).then_some(machine)).min().unwrap_or(0)
}

/// The files that may say what a control group allows, for both versions of those, inside a container or outside.
/// `groups` is `/proc/self/cgroup`.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        match (parts.next(), parts.next()) {
            (Some(""), Some(path)) => {
                files.push(format!("/sys/fs/cgroup{}/memory.max", path.trim_end_matches('/')));
                files.push("/sys/fs/cgroup/memory.max".to_owned());
            }
            (Some(kinds), Some(path)) if kinds.split(',').any(|kind| kind == "memory") => {
                let path = path.trim_end_matches('/');
                files.push(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"));
                files.push("/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned());
            }
            _ => {}
        }
    }
    files
}

fn limit_in(file: impl AsRef<Path>) -> Option<u64> {
    let bytes = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    Some(bytes).filter(|bytes| *bytes < NO_LIMIT)
}

/// Resident memory in bytes; 0 where the system does not tell.
#[must_use]
pub fn resident() -> u64 {
    // `statm` counts in pages, whose size only the C library knows; `status` counts in KiB.
    fs::read_to_string("/proc/self/status").ok().and_then(|status| field(&status, "VmRSS:")).unwrap_or(0)
}

/// Memory of the machine in bytes; 0 where the system does not tell.
#[must_use]
pub fn of_machine() -> u64 {
    fs::read_to_string("/proc/meminfo").ok().and_then(|info| field(&info, "MemTotal:")).unwrap_or(0)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_field_asked_for() {
        let status = "Name:\tbeige-worker\nVmPeak:\t  999 kB\nVmRSS:\t  1234 kB\n";
        assert_eq!(field(status, "VmRSS:"), Some(1234 * 1024));
        assert_eq!(field(status, "VmSwap:"), None);
        assert_eq!(field("VmRSS:\tmuch\n", "VmRSS:"), None);
        assert!(resident() > 0);
        assert!(of_machine() > resident());
    }

    #[test]
    fn a_control_group_says_its_limit_where_its_version_has_it() {
        #[track_caller]
        fn check(groups: &str, expected: &[&str]) {
            assert_eq!(limit_files(groups), expected);
        }
        check("", &[]);
        let root = "/sys/fs/cgroup/memory.max";
        check("0::/\n", &[root, root]);
        check("0::/kubepods/pod1\n", &["/sys/fs/cgroup/kubepods/pod1/memory.max", root]);
        let old = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        check(
            "9:name=systemd:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n",
            &["/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", old],
        );
        assert!(of_process() > 0 && of_process() <= of_machine());
    }

    #[test]
    fn what_is_free_is_what_the_limit_leaves() {
        let room = Room { free: 60, limit: 100 };
        assert_eq!(room.within(None), room);
        assert_eq!(room.within(NonZeroU64::new(70)), Room { free: 30, limit: 70 });
        assert_eq!(room.within(NonZeroU64::new(30)), Room { free: 0, limit: 30 });
    }

    #[test]
    fn a_checkpoint_fits_with_room_for_batches() {
        let room = |free| Some(Room { free, limit: 1 << 40 });
        assert_eq!(check(1000, None), Ok(()));
        assert_eq!(check(1000, room(MARGIN + 1000)), Ok(()));
        let short = Short { wanted: MARGIN + 1000, free: MARGIN + 999, limit: 1 << 40 };
        assert_eq!(check(1000, room(MARGIN + 999)), Err(short));

        let small = Memory::new(Device::Cpu, NonZeroU64::new(1));
        assert_eq!(small.fits(Footprint { device: 0, host: 0 }).unwrap_err().free, 0);
        assert_eq!((small.limit(), Memory::new(Device::Cpu, None).limit()), (1, of_process()));
        assert_eq!(Memory::new(Device::Cpu, None).fits(Footprint { device: 1, host: 0 }), Ok(()));
    }
}
