//! How much memory the process takes.

use std::fs;

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
}
