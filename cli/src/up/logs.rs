//! What the children write: passed on line by line, the last lines remembered.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

use crate::failure::Failure;
use crate::print;

/// Lines shown of a process that is given up.
const REMEMBERED: usize = 12;

/// Where logs go.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    directory: Option<PathBuf>,
}

impl Logs {
    /// To standard error, or to files in `directory`, which is made where it is missing.
    pub(crate) fn new(directory: Option<PathBuf>) -> Result<Self, Failure> {
        if let Some(directory) = &directory {
            let made = fs::create_dir_all(directory);
            made.map_err(|error| Failure::Usage(format!("cannot make {}: {error}", directory.display())))?;
        }
        Ok(Self { directory })
    }

    /// The log of one child.
    pub(crate) fn of(&self, name: &str) -> Result<Log, Failure> {
        let open = |directory: &PathBuf| open_file(&directory.join(format!("{name}.log")));
        let file = self.directory.as_ref().map(open).transpose()?;
        let written = Written { file, last: VecDeque::new() };
        Ok(Log { name: name.to_owned(), written: Arc::new(Mutex::new(written)) })
    }
}

fn open_file(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// The log of one child over all its lives.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    name: String,
    written: Arc<Mutex<Written>>,
}

#[derive(Debug)]
struct Written {
    file: Option<File>,
    last: VecDeque<String>,
}

impl Log {
    /// Passes on what a child writes until it closes its end.
    pub(crate) async fn follow(self, stream: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        // A read error is the end, too: nothing more will come.
        while lines.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
            self.write(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }

    fn write(&self, line: &str) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut written.file {
            // A full disk must not stop the children.
            Some(file) => drop(writeln!(file, "{line}")),
            None => print::note(format_args!("{} | {line}", self.name)),
        }
        if written.last.len() == REMEMBERED {
            written.last.pop_front();
        }
        written.last.push_back(line.to_owned());
    }

    /// Its last lines.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).last.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_goes_to_its_file_and_ends_in_its_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let log = Logs::new(Some(directory.path().join("logs"))).unwrap().of("worker-0").unwrap();
        let lines: Vec<String> = (0..20).map(|i| format!("line {i}")).collect();
        log.clone().follow(lines.join("\n").as_bytes()).await;
        let file = fs::read_to_string(directory.path().join("logs/worker-0.log")).unwrap();
        assert_eq!(file.lines().collect::<Vec<_>>(), lines);
        assert_eq!(log.last_lines(), lines[8..]);
    }
}
