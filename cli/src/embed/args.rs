//! The flags of `beige embed`, and the request they make.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use proto::v1::{self, EmbedRequest, Priority};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::remote::Remote;
use crate::rerank::Truncate;
use crate::texts::InputArgs;

use super::output::Format;

const AFTER_HELP: &str = "\
Texts are arguments, lines of --input, or lines of standard input. Vectors go to standard output, or to the \
file of --output, whose name says how:
  .jsonl        one object per text: index, id where the input has one, digest, embedding
  .npy          one array, a row per text; with --encoding int8 the factors go to NAME.scales.npy
  .safetensors  tensor `embeddings` (and `scales`), the checkpoint in the metadata
With --encoding binary a row of .npy or .safetensors holds 8 numbers per byte, as numpy.packbits.

An output is written beside its place, as NAME.partial, and moved there when it is complete. After an \
interruption the same command with --resume goes on where it ended. All vectors of an output come from one \
checkpoint: where that is no longer served, --resume refuses.

Examples:
  beige embed \"What is the BGE family?\"
  beige embed --input-type query --json \"who wrote it?\"
  beige embed --input passages.jsonl --field body --input-type document --output passages.npy
  beige embed --input big.txt --output big.safetensors --encoding f16 --in-flight 8 --resume";

/// Turn texts into vectors.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct EmbedArgs {
    /// The texts
    #[arg(value_name = "TEXT")]
    pub(crate) texts: Vec<String>,
    /// The model, or MODEL@DIGEST; by default the only one that embeds
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) vectors: VectorArgs,
    #[command(flatten)]
    pub(crate) input: InputArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Texts per call
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = at_least_one)]
    pub(crate) batch_texts: usize,
    /// Calls open at once
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = at_least_one)]
    pub(crate) in_flight: usize,
    /// How long a call is tried again while the server is busy or away, seconds [default: 120, and 10 for
    /// texts that are arguments]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) patience: Option<u64>,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// What vectors are wanted.
#[derive(Args, Debug)]
pub(crate) struct VectorArgs {
    /// What the texts are for: picks the model's instruction
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) input_type: Option<InputType>,
    /// Put in front of each text, in place of the model's own instruction
    #[arg(long, value_name = "TEXT")]
    pub(crate) instruction: Option<String>,
    /// Numbers per vector, fewer than the model's own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) dimensions: Option<u32>,
    /// How numbers travel and are stored
    #[arg(long, value_enum, default_value_t = Encoding::F32)]
    pub(crate) encoding: Encoding,
    /// Leave vectors at the length the model gives them
    #[arg(long)]
    pub(crate) no_normalize: bool,
    /// What happens to texts beyond the model's window
    #[arg(long, value_enum, default_value_t = Truncate::None)]
    pub(crate) truncate: Truncate,
}

/// Where vectors go.
#[derive(Args, Debug)]
pub(crate) struct OutputArgs {
    /// Write to a file: `.jsonl`, `.npy` or `.safetensors`
    #[arg(long = "output", short = 'o', value_name = "FILE", value_parser = Format::check)]
    pub(crate) path: Option<PathBuf>,
    /// Go on with an output that was interrupted, or begin it
    #[arg(long, requires = "path")]
    pub(crate) resume: bool,
    /// Begin anew even where an interrupted output could be resumed
    #[arg(long, requires = "path", conflicts_with = "resume")]
    pub(crate) overwrite: bool,
}

/// What texts are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputType {
    /// Questions to be answered
    Query,
    /// Texts to be found
    Document,
}

/// How numbers travel and are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Encoding {
    /// Single precision
    F32,
    /// Half precision
    F16,
    /// Signed bytes and one factor per vector
    Int8,
    /// One bit per number
    Binary,
}

impl Encoding {
    /// As it travels.
    pub(crate) fn to_wire(self) -> v1::Encoding {
        match self {
            Self::F32 => v1::Encoding::F32,
            Self::F16 => v1::Encoding::F16,
            Self::Int8 => v1::Encoding::Int8,
            Self::Binary => v1::Encoding::Binary,
        }
    }

    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Binary => "binary",
        }
    }
}

impl EmbedArgs {
    /// How long a call is tried again.
    pub(crate) fn patience(&self) -> Duration {
        // Who types a text waits for its vector; who has a file embedded has gone home.
        Duration::from_secs(self.patience.unwrap_or(if self.texts.is_empty() { 120 } else { 10 }))
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "it is not a whole number above zero".to_owned())
}

/// What is asked of each batch.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// A request that lacks its inputs.
    pub(crate) template: EmbedRequest,
    pub(crate) encoding: Encoding,
    /// Everything about the vectors that flags decide, for the metadata of outputs.
    pub(crate) wishes: Vec<(&'static str, String)>,
    /// SHA-256 over what makes two runs write the same output, given the same texts.
    pub(crate) settings: String,
}

impl Job {
    pub(crate) fn new(args: &EmbedArgs, model: String) -> Self {
        let vectors = &args.vectors;
        // Someone waits for the vectors of arguments; those of a file are a job.
        let priority = if args.texts.is_empty() { Priority::Bulk } else { Priority::Interactive };
        let input_type = match vectors.input_type {
            Some(InputType::Query) => v1::InputType::Query,
            Some(InputType::Document) => v1::InputType::Document,
            None => v1::InputType::Unspecified,
        };
        let settings = json!({
            "v": 1,
            "model": model,
            "input_type": i32::from(input_type),
            "instruction": vectors.instruction,
            "dimensions": vectors.dimensions,
            "encoding": vectors.encoding.name(),
            "normalize": !vectors.no_normalize,
            "truncation": i32::from(vectors.truncate.to_wire()),
            "field": args.input.field,
            "skip_empty": args.input.skip_empty,
        });
        Self {
            wishes: wishes(vectors),
            template: EmbedRequest {
                model,
                input_type: input_type.into(),
                instruction: vectors.instruction.clone(),
                encoding: vectors.encoding.to_wire().into(),
                dimensions: vectors.dimensions,
                normalize: vectors.no_normalize.then_some(false),
                truncation: vectors.truncate.to_wire().into(),
                priority: priority.into(),
                ..EmbedRequest::default()
            },
            encoding: vectors.encoding,
            settings: hex(&Sha256::digest(settings.to_string())),
        }
    }
}

fn wishes(vectors: &VectorArgs) -> Vec<(&'static str, String)> {
    let input_type = vectors.input_type.map(|input_type| match input_type {
        InputType::Query => "query".to_owned(),
        InputType::Document => "document".to_owned(),
    });
    let truncation = match vectors.truncate {
        Truncate::End => "end",
        Truncate::Start => "start",
        Truncate::None => "none",
    };
    let wishes = [
        ("encoding", Some(vectors.encoding.name().to_owned())),
        ("input_type", input_type),
        ("instruction", vectors.instruction.clone()),
        ("normalize", vectors.no_normalize.then(|| "false".to_owned())),
        ("truncation", Some(truncation.to_owned())),
    ];
    wishes.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // Writing to a string does not fail.
        text
    })
}
