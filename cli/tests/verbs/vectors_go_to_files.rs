//! `beige embed`: every source of texts, every form of output.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::fake::{DIGEST, DIMENSIONS, Fake, vector};
use crate::{beige, beige_with};

/// A file of `count` numbered texts.
fn texts(directory: &Path, count: usize) -> String {
    let path = directory.join("texts.txt");
    let lines: Vec<String> = (0..count).map(|i| format!("text number {i}")).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn expected(count: usize) -> Vec<f32> {
    (0..count).flat_map(|i| vector(DIGEST, &format!("text number {i}"), DIMENSIONS)).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The header's literal and the data of an `.npy` file.
fn npy(path: &Path) -> (String, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let (header, data) = bytes.split_at(128);
    assert_eq!(&header[..8], b"\x93NUMPY\x01\x00");
    (String::from_utf8(header[10..].to_vec()).unwrap().trim_end().to_owned(), data.to_vec())
}

/// Embeds 150 texts, in three batches, into `name`.
#[track_caller]
fn embed(name: &str, flags: &[&str], check: impl FnOnce(&Path)) {
    let (fake, directory) = (Fake::start(), tempfile::tempdir().unwrap());
    let (input, output) = (texts(directory.path(), 150), directory.path().join(name));
    let args = ["embed", "--input", &input, "--output", output.to_str().unwrap(), "--json"];
    let summary = beige(&fake, &[&args[..], flags].concat()).json().remove(0);
    assert_eq!((&summary["texts"], &summary["tokens"]), (&json!(150), &json!(150 * 5)));
    assert_eq!(summary["digest"], json!(DIGEST));
    check(&output);
    let left = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.contains("partial")), "something is left over");
}

#[test]
fn arguments_become_json_lines() {
    let fake = Fake::start();
    let lines = beige(&fake, &["embed", "one", "two words"]).json();
    let row =
        |i: u32, text| json!({ "index": i, "digest": DIGEST, "embedding": vector(DIGEST, text, DIMENSIONS) });
    assert_eq!(lines, [row(0, "one"), row(1, "two words")]);
}

#[test]
fn standard_input_is_read_line_by_line() {
    let fake = Fake::start();
    let lines = beige_with(&fake, &["embed", "--batch-texts", "2"], "a\nb\nc\n").json();
    let indices: Vec<_> = lines.iter().map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(lines[2]["embedding"], json!(vector(DIGEST, "c", DIMENSIONS)));
}

#[test]
fn flags_reach_the_server() {
    let fake = Fake::start();
    let args = ["embed", "--dimensions", "3", "--instruction", "find: ", "a"];
    assert_eq!(beige(&fake, &args).json()[0]["embedding"], json!(vector(DIGEST, "find: a", 3)));
    let int8 = beige(&fake, &["embed", "--encoding", "int8", "a"]).json().remove(0);
    let numbers: Vec<f64> =
        int8["embedding"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
    let meant: Vec<f64> = numbers.iter().map(|n| n * int8["scale"].as_f64().unwrap()).collect();
    assert_eq!(meant, vector(DIGEST, "a", DIMENSIONS).into_iter().map(f64::from).collect::<Vec<_>>());
}

#[test]
fn json_lines_keep_the_ids_of_json_lines() {
    let (fake, directory) = (Fake::start(), tempfile::tempdir().unwrap());
    let (input, output) = (directory.path().join("in.jsonl"), directory.path().join("out.jsonl"));
    fs::write(&input, "{\"id\":\"x\",\"body\":\"a\"}\n{\"body\":\"b\"}\n").unwrap();
    let (input, path) = (input.to_str().unwrap(), output.to_str().unwrap());
    let ran = beige(&fake, &["embed", "--input", input, "--field", "body", "--output", path]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""));
    assert!(ran.stderr.contains("2 texts, 6 tokens, 8 dimensions by mini@111111111111"), "{ran:?}");
    let lines = fs::read_to_string(output).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["id"], &lines[0]["index"]), (&json!("x"), &json!(0)));
    assert_eq!((lines[1].get("id"), &lines[1]["index"]), (None, &json!(1)));
}

#[test]
fn npy_holds_one_row_per_text() {
    embed("out.npy", &[], |path| {
        let (header, data) = npy(path);
        assert_eq!(header, "{'descr': '<f4', 'fortran_order': False, 'shape': (150, 8), }");
        assert_eq!(f32s(&data), expected(150));
    });
    embed("half.npy", &["--encoding", "f16"], |path| {
        let (header, data) = npy(path);
        assert_eq!(header, "{'descr': '<f2', 'fortran_order': False, 'shape': (150, 8), }");
        assert_eq!(data.len(), 150 * 8 * 2);
    });
    embed("bits.npy", &["--encoding", "binary"], |path| {
        let (header, data) = npy(path);
        assert_eq!(header, "{'descr': '|u1', 'fortran_order': False, 'shape': (150, 1), }");
        let bits: Vec<bool> =
            data.iter().flat_map(|byte| (0..8).map(move |i| byte >> (7 - i) & 1 == 1)).collect();
        assert_eq!(bits, expected(150).iter().map(|number| *number > 0.0).collect::<Vec<_>>());
    });
}

#[test]
fn npy_of_bytes_has_its_factors_beside_it() {
    embed("out.npy", &["--encoding", "int8"], |path| {
        let (header, data) = npy(path);
        assert_eq!(header, "{'descr': '|i1', 'fortran_order': False, 'shape': (150, 8), }");
        let (scales_header, scales) = npy(&path.with_extension("scales.npy"));
        assert_eq!(scales_header, "{'descr': '<f4', 'fortran_order': False, 'shape': (150,), }");
        let numbers = data.iter().map(|byte| f32::from(byte.cast_signed()) * f32s(&scales)[0]);
        assert_eq!(numbers.collect::<Vec<_>>(), expected(150));
    });
}

#[test]
fn safetensors_name_their_checkpoint() {
    embed("out.safetensors", &["--encoding", "int8", "--input-type", "document"], |path| {
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (rows, scales) = (tensors.tensor("embeddings").unwrap(), tensors.tensor("scales").unwrap());
        assert_eq!((rows.dtype(), rows.shape()), (Dtype::I8, &[150, 8][..]));
        assert_eq!(f32s(scales.data()), [1.0 / 64.0; 150]);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        assert_eq!((metadata["model"].as_str(), metadata["digest"].as_str()), ("mini", DIGEST));
        assert_eq!((metadata["input_type"].as_str(), metadata["encoding"].as_str()), ("document", "int8"));
    });
    embed("plain.safetensors", &[], |path| {
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(f32s(tensors.tensor("embeddings").unwrap().data()), expected(150));
        assert_eq!(tensors.names(), ["embeddings"]);
    });
}
