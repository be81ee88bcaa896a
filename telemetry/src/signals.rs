//! What tells the process to end: SIGTERM, SIGINT, or the end of standard input.

use std::io;
use std::thread;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Whether the end of standard input counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// It does: a supervisor holds the other end, and may die.
    Watched,
    /// It does not.
    Ignored,
}

/// Ways to be told to end.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    stdin: CancellationToken,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// Where the system does not let it.
    pub fn listen(stdin: Stdin) -> io::Result<Self> {
        let over = CancellationToken::new();
        if stdin == Stdin::Watched {
            let over = over.clone();
            // Not joined: it ends with standard input or with the process.
            thread::Builder::new().name("stdin".to_owned()).spawn(move || {
                read_out(&mut io::stdin().lock());
                over.cancel();
            })?;
        }
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, stdin: over })
    }

    /// Waits for the first word, and answers what it was. Cancel safe.
    pub async fn leave(&mut self) -> &'static str {
        let stdin = self.stdin.clone();
        tokio::select! {
            () = stdin.cancelled() => "the end of standard input",
            signal = self.insist() => signal,
        }
    }

    /// Waits for a signal: standard input ends only once. Cancel safe.
    pub async fn insist(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Returns when `input` ends or fails. What is in it means nothing.
fn read_out(input: &mut impl io::Read) {
    let mut ignored = [0; 256];
    while matches!(input.read(&mut ignored), Ok(read) if read > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_read_to_its_end() {
        let mut input = &[1; 1000][..];
        read_out(&mut input);
        assert!(input.is_empty());
    }
}
