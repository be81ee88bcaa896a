//! What comes from the environment and is no flag; read here and nowhere else.

use std::env;
use std::path::{Path, PathBuf};

/// Everything that set-up makes lives below: `$BEIGE_CACHE`, else `$XDG_CACHE_HOME/beige`, else
/// `$HOME/.cache/beige`. Nothing where none of the three is set.
pub(crate) fn cache() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("BEIGE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|home| home.join("beige")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/beige")))
}

/// The trace that this process is part of, where `TRACEPARENT` holds a valid one. As the W3C wants it, an
/// invalid one is as good as none.
pub(crate) fn trace_parent() -> Option<String> {
    env::var_os("TRACEPARENT")?.into_string().ok().filter(|value| is_trace_parent(value))
}

/// `version-trace-parent-flags` in lower-case hexadecimal, neither number zero.
fn is_trace_parent(value: &str) -> bool {
    let fields: Vec<&str> = value.split('-').collect();
    let hex = |field: &str| field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let zero = |field: &str| field.bytes().all(|b| b == b'0');
    let lengths: Vec<usize> = fields.iter().map(|field| field.len()).collect();
    lengths == [2, 32, 16, 2]
        && fields.iter().all(|field| hex(field))
        && fields[0] != "ff"
        && !zero(fields[1])
        && !zero(fields[2])
}

/// A program: beside this one, else on the search path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|this| this.parent().map(Path::to_owned));
    let path = env::var_os("PATH").unwrap_or_default();
    beside.into_iter().chain(env::split_paths(&path)).map(|directory| directory.join(name)).find(|p| runs(p))
}

fn runs(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_parent_is_checked_before_it_is_sent() {
        assert!(is_trace_parent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(!is_trace_parent("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"));
        assert!(!is_trace_parent("00-00000000000000000000000000000000-00f067aa0ba902b7-01"));
        assert!(!is_trace_parent("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(!is_trace_parent("00-4bf92f3577b34da6a3ce929d0e0e4736-01"));
        assert!(!is_trace_parent("hello"));
    }

    #[test]
    fn a_program_is_a_file_that_may_be_run() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}
