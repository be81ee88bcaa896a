//! Texts from the command line, a file or standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::vec;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::failure::Failure;

/// Where texts come from when they are not arguments.
#[derive(Args, Debug)]
pub(crate) struct InputArgs {
    /// Read texts from a file: one per line, or with `.jsonl` one JSON object per line; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// How the file or standard input is laid out; by default as the file's name says, else text
    #[arg(long, value_name = "FORMAT")]
    pub(crate) input_format: Option<InputFormat>,
    /// The field of a JSON line that holds the text; an `id` beside it is kept
    #[arg(long, default_value = "text", value_name = "NAME")]
    pub(crate) field: String,
    /// Leave out empty texts instead of refusing them; numbers then count the texts kept
    #[arg(long)]
    pub(crate) skip_empty: bool,
}

/// How a file of texts is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputFormat {
    /// One text per line
    Text,
    /// One JSON object per line
    Jsonl,
}

/// One text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// The caller's own name for it.
    pub(crate) id: Option<Value>,
    pub(crate) text: String,
}

/// Texts in order, with how far they are read.
pub(crate) struct Texts {
    origin: Origin,
    format: InputFormat,
    field: String,
    skip_empty: bool,
    /// What error messages call the source.
    name: String,
    line: u64,
    bytes_read: u64,
    bytes_total: Option<u64>,
}

enum Origin {
    Given(vec::IntoIter<String>),
    Lines(Box<dyn BufRead + Send>),
}

impl Texts {
    /// Opens the arguments if there are any, else the file, else standard input.
    pub(crate) fn open(given: Vec<String>, args: &InputArgs) -> Result<Self, Failure> {
        let file = args.input.as_deref().filter(|path| *path != Path::new("-"));
        if !given.is_empty() {
            if args.input.is_some() {
                return Err(Failure::Usage("texts are given both as arguments and with --input".to_owned()));
            }
            let bytes = given.iter().map(|text| text.len() as u64).sum();
            let origin = Origin::Given(given.into_iter());
            return Ok(Self::new(origin, args, ("the arguments".to_owned(), Some(bytes))));
        }
        if let Some(path) = file {
            let open = || -> io::Result<(File, u64)> {
                let file = File::open(path)?;
                let bytes = file.metadata()?.len();
                Ok((file, bytes))
            };
            let (file, bytes) =
                open().map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?;
            let lines = Origin::Lines(Box::new(BufReader::with_capacity(1 << 16, file)));
            return Ok(Self::new(lines, args, (path.display().to_string(), Some(bytes))));
        }
        if args.input.is_none() && io::stdin().is_terminal() {
            let ways = "give them as arguments, with --input, or on standard input";
            return Err(Failure::Usage(format!("there are no texts: {ways}")));
        }
        let lines = Origin::Lines(Box::new(BufReader::new(io::stdin())));
        Ok(Self::new(lines, args, ("standard input".to_owned(), None)))
    }

    fn new(origin: Origin, args: &InputArgs, (name, bytes_total): (String, Option<u64>)) -> Self {
        let jsonl = args.input.as_ref().and_then(|path| path.extension()).is_some_and(|end| end == "jsonl");
        let implied = if jsonl { InputFormat::Jsonl } else { InputFormat::Text };
        Self {
            origin,
            format: args.input_format.unwrap_or(implied),
            field: args.field.clone(),
            skip_empty: args.skip_empty,
            name,
            line: 0,
            bytes_read: 0,
            bytes_total,
        }
    }

    /// Bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Bytes there are in all, where that is known.
    pub(crate) fn bytes_total(&self) -> Option<u64> {
        self.bytes_total
    }

    /// The next text, empty or not.
    fn read(&mut self) -> Result<Option<Item>, Failure> {
        self.line += 1;
        match &mut self.origin {
            Origin::Given(texts) => {
                let text = texts.next();
                self.bytes_read += text.as_ref().map_or(0, |text| text.len() as u64);
                Ok(text.map(|text| Item { id: None, text }))
            }
            Origin::Lines(lines) => loop {
                let mut line = Vec::new();
                let read = lines.read_until(b'\n', &mut line);
                let read = read.with_context(|| format!("cannot read {}", self.name))?;
                self.bytes_read += read as u64;
                // A blank line between JSON objects is layout, not a text.
                if self.format == InputFormat::Jsonl && read > 0 && line.trim_ascii().is_empty() {
                    self.line += 1;
                    continue;
                }
                return if read == 0 { Ok(None) } else { self.parse(line).map(Some) };
            },
        }
    }

    fn parse(&self, mut line: Vec<u8>) -> Result<Item, Failure> {
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        }
        let text = String::from_utf8(line).map_err(|_| self.refuse("is not UTF-8"))?;
        match self.format {
            InputFormat::Text => Ok(Item { id: None, text }),
            InputFormat::Jsonl => self.parse_object(&text),
        }
    }

    fn parse_object(&self, line: &str) -> Result<Item, Failure> {
        let value =
            serde_json::from_str(line).map_err(|error| self.refuse(&format!("is not JSON: {error}")))?;
        let Value::Object(mut fields) = value else {
            return Err(self.refuse("is not a JSON object"));
        };
        match fields.remove(&self.field) {
            Some(Value::String(text)) => Ok(Item { id: fields.remove("id"), text }),
            Some(_) => Err(self.refuse(&format!("has a field \"{}\" that is not a string", self.field))),
            None => Err(self.refuse(&format!("has no field \"{}\"", self.field))),
        }
    }

    fn refuse(&self, fault: &str) -> Failure {
        let unit = match self.origin {
            Origin::Given(_) => "text",
            Origin::Lines(_) => "line",
        };
        Failure::Usage(format!("{unit} {} of {} {fault}", self.line, self.name))
    }

    fn next_text(&mut self) -> Result<Option<Item>, Failure> {
        while let Some(item) = self.read()? {
            if !item.text.is_empty() {
                return Ok(Some(item));
            }
            if !self.skip_empty {
                return Err(
                    self.refuse("is empty, and an empty text has no vector; --skip-empty leaves it out")
                );
            }
        }
        Ok(None)
    }
}

impl Iterator for Texts {
    type Item = Result<Item, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_text().transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn args(format: InputFormat, skip_empty: bool) -> InputArgs {
        InputArgs { input: None, input_format: Some(format), field: "text".to_owned(), skip_empty }
    }

    fn read(bytes: &[u8], args: &InputArgs) -> Result<Vec<Item>, String> {
        let lines = Origin::Lines(Box::new(Cursor::new(bytes.to_vec())));
        let texts = Texts::new(lines, args, ("x".to_owned(), None));
        texts.collect::<Result<_, _>>().map_err(|failure| failure.to_string())
    }

    fn item(id: Option<Value>, text: &str) -> Item {
        Item { id, text: text.to_owned() }
    }

    #[track_caller]
    fn refuses(bytes: &[u8], format: InputFormat, sentence: &str) {
        assert_eq!(read(bytes, &args(format, false)).unwrap_err(), sentence);
    }

    #[test]
    fn lines_end_at_line_feeds_and_a_last_one_needs_none() {
        let expected = vec![item(None, "a b"), item(None, " c"), item(None, "d")];
        assert_eq!(read(b"a b\r\n c\nd", &args(InputFormat::Text, false)).unwrap(), expected);
    }

    #[test]
    fn json_lines_keep_their_id() {
        let lines =
            b"{\"text\":\"a\",\"id\":7}\n{\"id\":\"x\",\"text\":\"b\",\"more\":[1]}\n{\"text\":\"c\"}\n";
        let expected = vec![item(Some(7.into()), "a"), item(Some("x".into()), "b"), item(None, "c")];
        assert_eq!(read(lines, &args(InputFormat::Jsonl, false)).unwrap(), expected);
    }

    #[test]
    fn empty_texts_are_refused_or_left_out() {
        let sentence = "line 2 of x is empty, and an empty text has no vector; --skip-empty leaves it out";
        refuses(b"a\n\nb\n", InputFormat::Text, sentence);
        refuses(b"{\"text\":\"a\"}\n{\"text\":\"\"}\n", InputFormat::Jsonl, sentence);
        let kept = read(b"a\n\n\nb\n\n", &args(InputFormat::Text, true)).unwrap();
        assert_eq!(kept, vec![item(None, "a"), item(None, "b")]);
    }

    #[test]
    fn a_line_that_is_no_text_is_named() {
        refuses(b"a\n\xff\n", InputFormat::Text, "line 2 of x is not UTF-8");
        refuses(
            b"{\"text\":1}\n",
            InputFormat::Jsonl,
            "line 1 of x has a field \"text\" that is not a string",
        );
        refuses(b"{}\n", InputFormat::Jsonl, "line 1 of x has no field \"text\"");
        refuses(b"\n\n[]\n", InputFormat::Jsonl, "line 3 of x is not a JSON object");
    }

    #[test]
    fn progress_counts_bytes() {
        let lines = Origin::Lines(Box::new(Cursor::new(b"ab\ncd\n".to_vec())));
        let mut texts = Texts::new(lines, &args(InputFormat::Text, false), ("x".to_owned(), Some(6)));
        texts.next();
        assert_eq!((texts.bytes_read(), texts.bytes_total()), (3, Some(6)));
    }
}
