//! Texts whose vectors are known; see `tests/golden/README.md`.

use safetensors::SafeTensors;

use crate::repository;

/// What arithmetic in another order may change.
const TOLERANCE: f32 = 1e-5;

/// The texts of one checkpoint and their vectors.
#[derive(Clone, Debug)]
pub struct Golden {
    /// As a caller sends them; some are longer than the window and lose their end.
    pub texts: Vec<String>,
    /// One row per text.
    pub vectors: Vec<Vec<f32>>,
}

impl Golden {
    /// Reads the golden files of an embedder.
    pub fn read(name: &str) -> Self {
        let path = repository().join("tests/golden").join(name);
        let lines = std::fs::read_to_string(path.with_extension("jsonl")).unwrap();
        let text = |line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned()
        };
        let texts: Vec<String> = lines.lines().map(text).collect();
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = floats(tensors.tensor("embeddings").unwrap().data());
        let vectors: Vec<_> =
            numbers.chunks_exact(numbers.len() / texts.len()).map(<[f32]>::to_vec).collect();
        Self { texts, vectors }
    }

    /// Only the texts that gateways accept: those with something to read in them.
    #[must_use]
    pub fn readable(self) -> Self {
        let readable = |text: &String| text.chars().any(|c| !c.is_control() && !c.is_whitespace());
        let (texts, vectors) =
            self.texts.into_iter().zip(self.vectors).filter(|(text, _)| readable(text)).unzip();
        Self { texts, vectors }
    }

    /// Whether `found` is the vector of text `i`.
    pub fn is_vector_of(&self, i: usize, found: &[f32]) -> bool {
        let expected = &self.vectors[i];
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < TOLERANCE)
    }
}

/// Little-endian single precision, as vectors travel.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}
