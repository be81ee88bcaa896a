//! All that is logged on one thread.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Level};
use tracing_subscriber::Registry;

/// What was logged since [`Log::keep`], down to the last detail, ours and that of every library. Of the runtime of a
/// test it sees everything as long as that has one thread.
pub(crate) struct Log {
    lines: Lines,
    _kept: DefaultGuard,
    /// Where a process has one subscriber alone, a place in the code that logs is asked for by the thread that comes there
    /// first: another test's thread has none, and what it says holds for all threads.
    _another: Dispatch,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn keep() -> Self {
        let (lines, another) = (Lines::default(), Dispatch::new(Registry::default()));
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self { lines, _kept: tracing::subscriber::set_default(subscriber), _another: another }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lines.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
