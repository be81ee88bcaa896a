//! Files of golden samples: inputs, and what an implementation of the publisher's own makes of them, one JSON object a
//! line: `{"text": …, "embedding": […]}`, for a cross-encoder `{"query": …, "text": …, "score": …}`.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use proto::v1::GoldenSample;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::makes::Makes;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<String>,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f32>,
}

/// The samples of a file, in order; blank lines are passed over. They can be those of the checkpoint in `dir`, as far as its
/// configuration tells; whether they are is the server's to say.
///
/// # Errors
/// [`Failure::NoSamples`] names the file and the line; [`Failure::Local`] where it cannot be read.
pub fn golden(path: &Path, dir: &Path) -> Result<Vec<GoldenSample>, Failure> {
    let (shown, makes) = (path.display(), Makes::of(dir));
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let mut samples: Vec<GoldenSample> = Vec::new();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (at, line) in lines {
        let fault = |why: String| Failure::NoSamples(format!("{shown}, line {}: {why}", at + 1));
        let sample = sample(line).map_err(fault)?;
        if let Some(makes) = makes {
            makes.check(&sample).map_err(fault)?;
        }
        if let Some(first) = samples.first() {
            like(first, &sample).map_err(fault)?;
        }
        samples.push(sample);
    }
    if samples.is_empty() {
        return Err(Failure::NoSamples(format!("{shown} holds no golden samples")));
    }
    Ok(samples)
}

/// A sample as a line of such a file, without its end.
#[must_use]
pub fn golden_line(sample: &GoldenSample) -> String {
    let GoldenSample { text, query, embedding, score } = sample;
    let numbers = || embedding.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let embedding = (!embedding.is_empty()).then(numbers);
    let line = Line { query: query.clone(), text: text.clone(), embedding, score: *score };
    serde_json::to_string(&line).unwrap_or_default()
}

fn sample(line: &str) -> Result<GoldenSample, String> {
    let Line { query, text, embedding, score } =
        serde_json::from_str(line).map_err(|error| error.to_string())?;
    let parts = [("text", Some(&text)), ("query", query.as_ref())];
    if let Some((name, _)) = parts.iter().find(|(_, part)| part.is_some_and(|part| part.trim().is_empty())) {
        return Err(format!("its {name} is empty"));
    }
    match (&query, &embedding, score) {
        (None, Some(embedding), None) if embedding.is_empty() => Err("its embedding is empty".to_owned()),
        (Some(query), None, Some(_)) if query.contains('\n') => Err("its query has a line feed".to_owned()),
        (None, Some(_), None) | (Some(_), None, Some(_)) => {
            let numbers = embedding.unwrap_or_default();
            let embedding = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            Ok(GoldenSample { text, query, embedding, score })
        }
        _ => Err("it has neither text and embedding nor query, text and score alone".to_owned()),
    }
}

/// Whether two samples can be of one checkpoint.
fn like(first: &GoldenSample, other: &GoldenSample) -> Result<(), String> {
    let numbers = |sample: &GoldenSample| sample.embedding.len() / 4;
    match (first.query.is_some(), other.query.is_some()) {
        (true, false) => Err("it has no query, and the first sample has one".to_owned()),
        (false, true) => Err("it has a query, and the first sample has none".to_owned()),
        _ if numbers(first) != numbers(other) => {
            let (found, wanted) = (numbers(other), numbers(first));
            Err(format!("its embedding has {found} numbers, and the first {wanted}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a checkpoint of which nothing is known.
    fn read(text: &str) -> (String, Result<Vec<GoldenSample>, String>) {
        read_for(Path::new("/nowhere/at-all"), text)
    }

    fn read_for(dir: &Path, text: &str) -> (String, Result<Vec<GoldenSample>, String>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let samples = golden(file.path(), dir).map_err(|failure| failure.to_string());
        (file.path().display().to_string(), samples)
    }

    #[test]
    fn texts_have_embeddings_and_pairs_scores() {
        let text =
            "{\"text\": \"a\", \"embedding\": [0.6, -8e-1]}\n\n{\"embedding\":[1,0],\"text\":\"b\\nc\"}\n";
        let samples = read(text).1.unwrap();
        assert_eq!(samples[0].text, "a");
        assert_eq!(samples[0].embedding, [0.6_f32.to_le_bytes(), (-0.8_f32).to_le_bytes()].concat());
        assert_eq!((samples[1].text.as_str(), &samples[1].query, samples[1].score), ("b\nc", &None, None));
        let pairs = read("{\"query\": \"q\", \"text\": \"a\", \"score\": 0.25}").1.unwrap();
        assert_eq!((pairs[0].query.as_deref(), pairs[0].score), (Some("q"), Some(0.25)));
        for samples in [samples, pairs] {
            let lines: Vec<String> = samples.iter().map(golden_line).collect();
            assert_eq!(read(&lines.join("\n")).1.unwrap(), samples, "written and read again");
        }
    }

    #[test]
    fn numbers_come_back_to_the_bit() {
        let numbers = [0.1_f32, -0.0, 1.0 / 3.0, f32::MIN_POSITIVE, 1e-40, f32::MAX, 0.016_793_83];
        let embedding: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let sample = GoldenSample { text: "a".into(), embedding, ..GoldenSample::default() };
        assert_eq!(read(&golden_line(&sample)).1.unwrap(), [sample]);
    }

    #[test]
    fn a_fault_names_the_file_and_the_line() {
        let good = "{\"text\": \"a\", \"embedding\": [0.6, 0.8]}\n\n";
        for (line, part) in [
            ("nothing", "expected"),
            ("{\"text\": \"b\", \"vector\": [1]}", "unknown field `vector`"),
            ("{\"embedding\": [1]}", "missing field `text`"),
            ("{\"text\": \"b\", \"embedding\": [NaN]}", "expected"),
            ("{\"text\": \" \", \"embedding\": [0.6, 0.8]}", "text is empty"),
            ("{\"text\": \"b\", \"embedding\": []}", "embedding is empty"),
            ("{\"text\": \"b\", \"embedding\": [1.0]}", "has 1 numbers, and the first 2"),
            ("{\"text\": \"b\", \"query\": \"q\", \"score\": 0.5}", "the first sample has none"),
            ("{\"text\": \"b\", \"query\": \"q\\n\", \"score\": 0.5}", "query has a line feed"),
            ("{\"text\": \"b\", \"query\": \"q\"}", "neither"),
            ("{\"text\": \"b\", \"score\": 0.5}", "neither"),
            ("{\"text\": \"b\", \"embedding\": [0.6, 0.8], \"score\": 0.5}", "neither"),
        ] {
            let (path, read) = read(&format!("{good}{line}\n"));
            let sentence = read.unwrap_err();
            assert!(sentence.starts_with(&format!("{path}, line 3: ")), "{sentence}");
            assert!(sentence.contains(part), "{sentence}");
        }
        let (path, read) = read("\n");
        assert_eq!(read.unwrap_err(), format!("{path} holds no golden samples"));
        let absent = golden(Path::new("/nowhere/x"), Path::new("/nowhere")).unwrap_err().to_string();
        assert!(absent.contains("cannot read /nowhere/x"), "{absent}");
    }

    #[test]
    fn samples_of_another_checkpoint_are_known_by_its_configuration() {
        #[track_caller]
        fn check(architecture: &str, line: &str, expected: Option<&str>) {
            let dir = tempfile::tempdir().unwrap();
            let config = format!(r#"{{"architectures": ["{architecture}"], "hidden_size": 2}}"#);
            fs::write(dir.path().join("config.json"), config).unwrap();
            let (path, samples) = read_for(dir.path(), &format!("\n{line}\n"));
            let sentence = expected.map(|why| format!("{path}, line 2: {why}"));
            assert_eq!(samples.err(), sentence);
        }
        let (vector, pair) =
            (r#"{"text": "a", "embedding": [0.6, 0.8]}"#, r#"{"text": "a", "query": "q", "score": 0.5}"#);
        let longer = r#"{"text": "a", "embedding": [0.6, 0.8, 0.0]}"#;
        check("BertModel", vector, None);
        check("BertForSequenceClassification", pair, None);
        let why = "its embedding has 3 numbers, and those of the checkpoint 2";
        check("BertModel", longer, Some(why));
        let why = "it has a query and a score, and the checkpoint makes embeddings of 2 numbers";
        check("BertModel", pair, Some(why));
        let why = "it has an embedding, and the checkpoint makes scores of a query and a text";
        check("BertForSequenceClassification", vector, Some(why));
    }
}
