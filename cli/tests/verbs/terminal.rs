//! A terminal, as somebody sees it who runs `beige` there: util-linux's `script` makes the terminal, and what is written to
//! it is kept as the lines that stand on its screen.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Columns: wide enough for every line.
const WIDTH: usize = 160;
/// Rows: enough for every table.
const HEIGHT: usize = 60;

/// For so long something is waited for that is to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run of `beige` on a terminal.
pub(crate) struct Terminal {
    child: Child,
    screen: Arc<Mutex<Screen>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Runs `beige`, which is `program`, with `args`, none of which a shell would take apart, against `target`.
    pub(crate) fn run(program: &Path, target: &str, args: &[&str]) -> Self {
        let line =
            format!("stty cols {WIDTH} rows {HEIGHT} && exec '{}' {}", program.display(), args.join(" "));
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"])
            .env("BEIGE_TARGET", target)
            .env("TERM", "xterm")
            .env_remove("TRACEPARENT")
            .env_remove("BEIGE_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("util-linux has `script`");
        let (mut out, screen) = (child.stdout.take().unwrap(), Arc::<Mutex<Screen>>::default());
        let shown = Arc::clone(&screen);
        let read = move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut bytes) {
                shown.lock().unwrap().take(&bytes[..count]);
            }
        };
        let reader = thread::Builder::new().name("terminal".into()).spawn(read).unwrap();
        Self { child, screen, reader }
    }

    /// Waits until the screen is as it is `wanted`, and answers its lines.
    #[track_caller]
    pub(crate) fn until(&self, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let lines = self.screen.lock().unwrap().lines();
            if wanted(&lines) {
                return lines;
            }
            assert!(begun.elapsed() < PATIENCE, "the screen stays like this:\n{}", lines.join("\n"));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end: the exit code, and what is left on the screen.
    pub(crate) fn ended(mut self) -> (Option<i32>, Vec<String>) {
        let code = self.child.wait().unwrap().code();
        self.reader.join().unwrap();
        let lines = self.screen.lock().unwrap().lines();
        (code, lines)
    }
}

/// What stands on a screen that never scrolls.
#[derive(Debug, Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Bytes of a character or a sequence that is not complete.
    pending: Vec<u8>,
}

impl Screen {
    fn lines(&self) -> Vec<String> {
        let line = |row: &Vec<char>| row.iter().collect::<String>().trim_end().to_owned();
        let lines: Vec<String> = self.rows.iter().map(line).collect();
        let end = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
        lines[..end].to_vec()
    }

    fn take(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let text = match std::str::from_utf8(&pending) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&pending[..error.valid_up_to()]).unwrap(),
        };
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let (length, is_whole) = match rest.strip_prefix("\u{1b}[") {
                Some(sequence) => match sequence.find(|c: char| c.is_ascii_alphabetic()) {
                    Some(end) => {
                        self.obey(&sequence[..end], sequence.as_bytes()[end]);
                        (2 + end + 1, true)
                    }
                    None => (0, false),
                },
                None if rest == "\u{1b}" => (0, false),
                None => {
                    self.put(first);
                    (first.len_utf8(), true)
                }
            };
            if !is_whole {
                break;
            }
            rest = &rest[length..];
        }
        self.pending = pending[text.len() - rest.len()..].to_vec();
    }

    fn put(&mut self, character: char) {
        match character {
            '\r' => self.column = 0,
            '\n' => self.row += 1,
            character => {
                if self.column == WIDTH {
                    (self.row, self.column) = (self.row + 1, 0);
                }
                if self.rows.len() <= self.row {
                    self.rows.resize(self.row + 1, Vec::new());
                }
                let row = &mut self.rows[self.row];
                if row.len() <= self.column {
                    row.resize(self.column + 1, ' ');
                }
                row[self.column] = character;
                self.column += 1;
            }
        }
    }

    /// Does what a sequence says: moves, or clears. Colours are not seen.
    fn obey(&mut self, parameters: &str, command: u8) {
        let number = parameters.parse().unwrap_or(1);
        match command {
            b'A' => self.row = self.row.saturating_sub(number),
            b'B' => self.row += number,
            b'C' => self.column += number,
            b'D' => self.column = self.column.saturating_sub(number),
            b'K' => {
                let from = if parameters == "2" { 0 } else { self.column };
                if let Some(row) = self.rows.get_mut(self.row) {
                    row.truncate(from);
                }
            }
            b'J' => {
                self.rows.truncate(self.row + 1);
                if let Some(row) = self.rows.get_mut(self.row) {
                    row.truncate(self.column);
                }
            }
            b'm' | b'h' | b'l' => {}
            other => panic!("{parameters}{} is not known here", char::from(other)),
        }
    }
}
