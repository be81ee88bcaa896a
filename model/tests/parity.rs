//! What we make of fixed texts is what the reference implementations make of them; see `tests/golden`.

#![allow(clippy::unwrap_used)] // Tests, helpers included.

use std::path::{Path, PathBuf};

use model::{
    Checkpoint, Device, Kind, Model, Overrides, Precision, Sequence, Tokenizer, Truncation, normalize,
};
use safetensors::SafeTensors;
use serde::Deserialize;

/// What arithmetic in another order may change; ten times what was measured for the reference itself.
const TOLERANCE: f32 = 1e-5;

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text { text: String },
    Pair { query: String, document: String },
}

struct Golden {
    inputs: Vec<Input>,
    bytes: Vec<u8>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = golden().join(name);
        let lines = std::fs::read_to_string(path.with_extension("jsonl")).unwrap();
        let inputs = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Self { inputs, bytes: std::fs::read(path.with_extension("safetensors")).unwrap() }
    }

    fn numbers<T>(&self, name: &str, parse: fn([u8; 4]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = tensors.tensor(name).unwrap();
        data.data().chunks_exact(4).map(|chunk| parse(chunk.try_into().unwrap())).collect()
    }

    fn tokens(&self, prefix: &str) -> Vec<Vec<i32>> {
        let ids = self.numbers(&format!("{prefix}ids"), i32::from_le_bytes);
        let offsets = self.numbers(&format!("{prefix}offsets"), i32::from_le_bytes);
        let at = |i: i32| usize::try_from(i).unwrap();
        offsets.windows(2).map(|pair| ids[at(pair[0])..at(pair[1])].to_vec()).collect()
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn open(name: &str) -> Checkpoint {
    let dir = if name == "minilm" {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("beige");
        std::env::var_os("BEIGE_CACHE").map_or_else(cache, PathBuf::from).join("models/all-MiniLM-L6-v2")
    } else {
        golden().join("checkpoints").join(name)
    };
    assert!(dir.exists(), "{} is not there; run `make setup`", dir.display());
    Checkpoint::open(&dir, &Overrides::default()).unwrap()
}

fn encode(tokenizer: &Tokenizer, input: &Input, prompt: &str) -> Sequence {
    match input {
        Input::Text { text } => tokenizer.encode(&format!("{prompt}{text}"), Truncation::End),
        Input::Pair { query, document } => tokenizer.encode_pair(query, document, Truncation::End),
    }
    .unwrap()
}

/// Rows as a caller sees them: normalised if the checkpoint's modules say so.
fn answers(checkpoint: &Checkpoint, model: &Model, batch: &[&Sequence]) -> Vec<f32> {
    let rows = model.run(batch).unwrap();
    let finish = |row: &[f32]| {
        let mut row = row.to_vec();
        if checkpoint.card().normalize {
            normalize(&mut row);
        }
        row
    };
    rows.iter().flat_map(finish).collect()
}

#[track_caller]
fn check_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // Not `worst < tolerance`: a number that is none fails too.
    assert!(found.iter().all(|x| x.is_finite()) && worst < tolerance, "worst difference {worst:e}");
}

#[track_caller]
fn check(name: &str, prefix: &str, prompt: &str) {
    let (golden, checkpoint) = (Golden::read(name), open(name));
    let tokenizer = checkpoint.tokenizer().unwrap();
    let sequences: Vec<_> = golden.inputs.iter().map(|input| encode(&tokenizer, input, prompt)).collect();
    for ((sequence, expected), i) in sequences.iter().zip(golden.tokens(prefix)).zip(0..) {
        let ids: Vec<i32> = sequence.ids.iter().map(|&id| i32::try_from(id).unwrap()).collect();
        assert_eq!(ids, expected, "tokens of line {i}");
    }
    let model = Model::load(&checkpoint, Device::Cpu, Precision::F32).unwrap();
    assert_eq!(model.dtype(), "f32");
    let tensor = match checkpoint.card().kind {
        Kind::Embedder => format!("{prefix}embeddings"),
        Kind::CrossEncoder => "logits".to_owned(),
    };
    let expected = golden.numbers(&tensor, f32::from_le_bytes);
    let batches = sequences.chunks(48).map(|batch| batch.iter().collect::<Vec<_>>());
    let found: Vec<f32> = batches.flat_map(|batch| answers(&checkpoint, &model, &batch)).collect();
    check_close(&found, &expected, TOLERANCE);
}

#[test]
fn minilm_is_the_reference() {
    check("minilm", "", "");
}

#[test]
fn bert_with_cls_pooling_and_prompts_is_the_reference() {
    let card = open("bert-cls").card().clone();
    check("bert-cls", "", "");
    check("bert-cls", "query.", &card.query_prompt.unwrap());
    check("bert-cls", "document.", &card.document_prompt.unwrap());
}

#[test]
fn bert_with_mean_pooling_and_a_vocabulary_file_is_the_reference() {
    check("bert-mean", "", "");
}

#[test]
fn xlm_roberta_with_a_unigram_tokenizer_is_the_reference() {
    check("xlmr-cls", "", "");
}

#[test]
fn xlm_roberta_with_byte_pairs_and_the_last_token_is_the_reference() {
    check("xlmr-bpe", "", "");
}

#[test]
fn cross_encoders_are_the_reference() {
    for name in ["bert-cross", "xlmr-cross"] {
        let golden = Golden::read(name);
        let tokenizer = open(name).tokenizer().unwrap();
        let segments: Vec<i32> = golden
            .inputs
            .iter()
            .map(|input| encode(&tokenizer, input, ""))
            .flat_map(|sequence| (0..sequence.tokens()).map(move |i| i32::from(i >= sequence.second)))
            .collect();
        assert_eq!(segments, golden.numbers("type_ids", i32::from_le_bytes), "{name}");
        check(name, "", "");
    }
}

#[test]
fn a_text_that_is_spelled_out_again_has_its_tokens() {
    let text = "the slowly growing ferns, unforgettable as they are";
    for name in ["minilm", "bert-cls", "bert-mean", "xlmr-cls", "xlmr-bpe"] {
        let tokenizer = open(name).tokenizer().unwrap();
        let ids = |text: &str| tokenizer.encode(text, Truncation::None).unwrap().ids;
        assert_eq!(ids(&tokenizer.shortened(text, 1_000).unwrap()), ids(text), "{name}");
        let cut = ids(&tokenizer.shortened(text, 5).unwrap());
        assert_eq!(cut[..cut.len() - 1], ids(text)[..cut.len() - 1], "{name}");
    }
}

#[test]
fn bf16_stays_true_where_the_processor_has_it() {
    let checkpoint = open("minilm");
    match Model::load(&checkpoint, Device::Cpu, Precision::Bf16) {
        Ok(model) => {
            let golden = Golden::read("minilm");
            let tokenizer = checkpoint.tokenizer().unwrap();
            let expected = golden.numbers("embeddings", f32::from_le_bytes);
            for (input, expected) in golden.inputs.iter().zip(expected.chunks_exact(384)) {
                let found = answers(&checkpoint, &model, &[&encode(&tokenizer, input, "")]);
                let cosine: f32 = found.iter().zip(expected).map(|(a, b)| a * b).sum();
                assert!(cosine > 0.999, "cosine {cosine}");
            }
        }
        Err(error) => {
            assert!(!model::Instructions::detect().bf16, "{error}");
            assert!(error.to_string().contains("no bf16 dot products"), "{error}");
        }
    }
}

mod neighbours {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    /// `[CLS] x… [SEP]` of random words, alone and among others.
    fn sequences() -> impl Strategy<Value = Vec<Vec<u32>>> {
        prop::collection::vec(prop::collection::vec(1000..30000_u32, 1..40), 1..12)
    }

    #[test]
    fn a_text_has_the_same_vector_alone_and_in_any_batch() {
        let checkpoint = open("minilm");
        let model = Model::load(&checkpoint, Device::Cpu, Precision::F32).unwrap();
        let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
        let law = |batch: Vec<Vec<u32>>| {
            let sequences: Vec<_> = batch.into_iter().map(Sequence::single).collect();
            let together = answers(&checkpoint, &model, &sequences.iter().collect::<Vec<_>>());
            for (sequence, row) in sequences.iter().zip(together.chunks_exact(384)) {
                check_close(row, &answers(&checkpoint, &model, &[sequence]), 1e-6);
            }
            Ok(())
        };
        TestRunner::new(config).run(&sequences(), law).unwrap();
    }
}
