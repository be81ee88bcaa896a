//! An output file that survives interruptions.
//!
//! Vectors are appended to `NAME.partial`; every so often they are forced to the disk and then
//! `NAME.partial.json`, the mark, says up to where they are complete. At the end the header is written over
//! its placeholder and the file is moved to its name. Factors of int8 vectors collect in
//! `NAME.partial.scales` until their place is known.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Map, Value};

use crate::failure::Failure;

use super::args::{Encoding, Job, OutputArgs};
use super::calls::Answer;
use super::mark::{Mark, sync_directory};
use super::rows::Shape;
use super::{jsonl, npy, safetensors};

/// How often a mark is set: what an interruption can cost, against waiting for the disk.
const MARK_EVERY: Duration = Duration::from_millis(500);

/// How an output is laid out; its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jsonl,
    Npy,
    Safetensors,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "jsonl" => Some(Self::Jsonl),
            "npy" => Some(Self::Npy),
            "safetensors" => Some(Self::Safetensors),
            _ => None,
        }
    }

    /// Accepts the name of an output.
    pub(crate) fn check(path: &str) -> Result<PathBuf, String> {
        let path = PathBuf::from(path);
        let known = Self::of(&path).is_some();
        if known { Ok(path) } else { Err("its name does not end in .jsonl, .npy or .safetensors".to_owned()) }
    }
}

/// The files of an output.
#[derive(Clone, Debug)]
struct Paths {
    complete: PathBuf,
    partial: PathBuf,
    mark: PathBuf,
    scales: PathBuf,
}

impl Paths {
    fn of(complete: &Path) -> Self {
        let beside = |end: &str| {
            let mut name = OsString::from(complete);
            name.push(end);
            PathBuf::from(name)
        };
        Self {
            complete: complete.to_owned(),
            partial: beside(".partial"),
            mark: beside(".partial.json"),
            scales: beside(".partial.scales"),
        }
    }
}

/// The right to write an output, and how far it has come.
pub(crate) struct Claim {
    paths: Paths,
    format: Format,
    /// Locked: two runs would interleave their rows.
    file: File,
    pub(crate) mark: Option<Mark>,
}

impl Claim {
    /// Claims an output, or finds that it is complete and was to be resumed.
    pub(crate) fn open(path: &Path, args: &OutputArgs, settings: &str) -> Result<Option<Self>, Failure> {
        let paths = Paths::of(path);
        let format = Format::of(path).context("the name was checked")?;
        let mark = if args.overwrite { None } else { Mark::load(&paths.mark)? };
        match &mark {
            None if args.resume && path.exists() => return Ok(None),
            Some(mark) if args.resume && mark.settings != settings => {
                let begun = format!("{} was begun with other settings", path.display());
                return Err(Failure::Usage(format!("{begun}; repeat them, or begin anew with --overwrite")));
            }
            Some(mark) if !args.resume => {
                let found = format!("an interrupted output of {} texts is there", mark.count);
                return Err(Failure::Usage(format!(
                    "{found}: go on with --resume, or begin anew with --overwrite"
                )));
            }
            Some(_) | None => {}
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&paths.partial);
        let file = file
            .map_err(|error| Failure::Usage(format!("cannot write {}: {error}", paths.partial.display())))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { paths, format, file, mark })),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::Usage(format!("another process is writing {}", path.display())))
            }
            Err(TryLockError::Error(error)) => Err(local(error, "cannot lock", &paths.partial)),
        }
    }

    /// Gives the right back; a file that holds nothing goes with it.
    pub(crate) fn release(self) {
        if self.mark.is_none() {
            // It may stay: nothing depends on it, and there is already a failure to report.
            let _ = fs::remove_file(&self.paths.partial);
        }
    }

    /// Opens the output for appending, at its mark or at the beginning; `first` is there in the latter case.
    pub(crate) fn begin(self, job: &Job, first: Option<&Answer>) -> Result<Output, Failure> {
        let Self { paths, format, file, mark } = self;
        let fresh = mark.is_none();
        let mark = match (mark, first) {
            (Some(mark), _) => mark,
            (None, Some(first)) => Mark::new(job, first),
            (None, None) => return Err(Failure::Usage("there are no texts".to_owned())),
        };
        let shape = Shape { encoding: job.encoding, dimensions: mark.provenance.dimensions };
        let metadata = metadata(&mark, job);
        let mut output = Output {
            paths,
            format,
            shape,
            metadata,
            rows: Part::new(file),
            scales: None,
            mark,
            marked: Instant::now(),
        };
        output.place(fresh).map_err(|error| local(error, "cannot write", &output.paths.partial))?;
        Ok(output)
    }
}

/// What the file says about its vectors, where its format has room.
fn metadata(mark: &Mark, job: &Job) -> Map<String, Value> {
    let from = &mark.provenance;
    let facts = [
        ("digest", from.digest.clone()),
        ("dimensions", from.dimensions.to_string()),
        ("epoch", from.epoch.to_string()),
        ("index_space", from.index_space.clone()),
        ("model", from.model.clone()),
    ];
    let wishes = job.wishes.iter().cloned();
    facts.into_iter().chain(wishes).map(|(name, value)| (name.to_owned(), Value::String(value))).collect()
}

fn local(error: io::Error, what: &str, path: &Path) -> Failure {
    Failure::Local(anyhow::Error::new(error).context(format!("{what} {}", path.display())))
}

/// A file that is appended to.
struct Part(BufWriter<File>);

impl Part {
    fn new(file: File) -> Self {
        Self(BufWriter::with_capacity(1 << 20, file))
    }

    /// Forgets what follows `bytes` and goes on there.
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        if self.0.get_ref().metadata()?.len() < bytes {
            return Err(io::Error::other("it is shorter than its record says; --overwrite begins anew"));
        }
        self.0.get_ref().set_len(bytes)?;
        self.0.seek(SeekFrom::Start(bytes)).map(drop)
    }

    /// Waits until all is on the disk.
    fn sync(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.0.get_ref().sync_data()
    }
}

/// An output that is being written.
pub(crate) struct Output {
    paths: Paths,
    format: Format,
    shape: Shape,
    metadata: Map<String, Value>,
    rows: Part,
    scales: Option<Part>,
    mark: Mark,
    marked: Instant,
}

impl Output {
    /// How far it has come.
    pub(crate) fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Brings the files to where the mark says they are.
    fn place(&mut self, fresh: bool) -> io::Result<()> {
        if fresh {
            // An older mark must not outlive the rows it speaks of.
            remove(&self.paths.mark)?;
            self.rows.cut(0)?;
            let header = self.header(0);
            self.rows.0.write_all(&header)?;
            self.mark.bytes = header.len() as u64;
        } else {
            self.rows.cut(self.mark.bytes)?;
        }
        if self.shape.scaled() && self.format != Format::Jsonl {
            let mut open = OpenOptions::new();
            let file = open.create(true).truncate(false).read(true).write(true).open(&self.paths.scales)?;
            let mut scales = Part::new(file);
            scales.cut(4 * self.mark.count)?;
            self.scales = Some(scales);
        }
        Ok(())
    }

    /// The bytes before the first row, of a length that does not depend on `rows`.
    fn header(&self, rows: u64) -> Vec<u8> {
        match self.format {
            Format::Jsonl => Vec::new(),
            Format::Npy => {
                let shape = format!("({rows}, {})", self.shape.columns());
                npy::header(npy::dtype(self.shape.encoding), &shape).to_vec()
            }
            Format::Safetensors => safetensors::header(&self.metadata, self.shape, rows),
        }
    }

    /// Appends an answer's rows.
    pub(crate) fn write(&mut self, answer: &Answer) -> Result<(), Failure> {
        if answer.rows.shape != self.shape {
            return Err(Failure::Refused("the server's answers differ in their dimensions".to_owned()));
        }
        self.append(answer).map_err(|error| local(error, "cannot write", &self.paths.partial))?;
        if self.marked.elapsed() >= MARK_EVERY { self.settle() } else { Ok(()) }
    }

    fn append(&mut self, answer: &Answer) -> io::Result<()> {
        match self.format {
            Format::Jsonl => jsonl::write(&mut self.rows.0, answer)?,
            Format::Npy | Format::Safetensors => self.rows.0.write_all(&answer.rows.data)?,
        }
        if let Some(scales) = &mut self.scales {
            let bytes: Vec<u8> = answer.rows.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            scales.0.write_all(&bytes)?;
        }
        self.mark.bytes = self.rows.0.stream_position()?;
        self.mark.advance(answer);
        Ok(())
    }

    /// Sets a mark: first the rows, then the word that they are there.
    pub(crate) fn settle(&mut self) -> Result<(), Failure> {
        let settle = |output: &mut Self| {
            output.rows.sync()?;
            output.scales.as_mut().map_or(Ok(()), Part::sync)?;
            output.mark.save(&output.paths.mark)
        };
        settle(self).map_err(|error| local(error, "cannot write", &self.paths.partial))?;
        self.marked = Instant::now();
        Ok(())
    }

    /// Completes the file and moves it to its name.
    pub(crate) fn finish(mut self) -> Result<Mark, Failure> {
        self.complete().map_err(|error| local(error, "cannot complete", &self.paths.complete))?;
        Ok(self.mark)
    }

    fn complete(&mut self) -> io::Result<()> {
        if let Some(mut scales) = self.scales.take() {
            scales.0.flush()?;
            self.place_scales(scales.0.get_ref())?;
        }
        let header = self.header(self.mark.count);
        self.rows.0.seek(SeekFrom::Start(0))?;
        self.rows.0.write_all(&header)?;
        self.rows.0.flush()?;
        self.rows.0.get_ref().sync_all()?;
        fs::rename(&self.paths.partial, &self.paths.complete)?;
        remove(&self.paths.mark)?;
        remove(&self.paths.scales)?;
        sync_directory(&self.paths.complete)
    }

    /// Puts the factors behind the rows, or, in the format of one array per file, beside them.
    fn place_scales(&mut self, mut scales: &File) -> io::Result<()> {
        scales.seek(SeekFrom::Start(0))?;
        if self.format == Format::Safetensors {
            return io::copy(&mut scales, &mut self.rows.0).map(drop);
        }
        let fresh = self.paths.scales.with_extension("scales.npy");
        let mut file = File::create(&fresh)?;
        file.write_all(&npy::header(npy::dtype(Encoding::F32), &format!("({},)", self.mark.count)))?;
        io::copy(&mut scales, &mut file)?;
        file.sync_all()?;
        fs::rename(&fresh, self.paths.complete.with_extension("scales.npy"))
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
