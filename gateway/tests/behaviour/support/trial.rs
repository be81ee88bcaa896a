//! What a fake worker makes of a checkpoint that it tries out.

use manifest::{Manifest, ManifestFile};
use proto::v1;
use proto::worker::v1 as wire;

use super::DIMENSIONS;

/// The text that every fake runs, whatever it is asked.
const OWN: &str = "a text of the worker's own";

/// The manifest of what is to be tried out.
pub(crate) fn manifest(request: &wire::TrialRequest) -> Manifest {
    let file = |file: &v1::CheckpointFile| ManifestFile {
        path: file.path.clone(),
        sha256: file.sha256.clone(),
        size: file.size,
    };
    let pooling = if request.pooling.is_empty() { "mean" } else { &request.pooling };
    let max_tokens = request.max_tokens.map_or(512, |tokens| tokens as usize);
    let files = request.files.iter().map(file).collect();
    Manifest::new(files, DIMENSIONS as usize, max_tokens, Some(pooling.to_owned()), true)
}

/// A checkpoint that loads. Texts have the same vectors whatever the checkpoint, but for its `accent`.
pub(crate) fn tried(request: &wire::TrialRequest, accent: f32) -> wire::Tried {
    let manifest = manifest(request);
    let texts: Vec<String> = std::iter::once(OWN.to_owned()).chain(request.texts.clone()).collect();
    let vector = |text: &String| {
        let length = f32::from(u16::try_from(text.len()).unwrap());
        [1.0, length, 1.0 / length, accent].into_iter().flat_map(f32::to_le_bytes)
    };
    wire::Tried {
        manifest: manifest.canonical(),
        checkpoint: Some(v1::Checkpoint {
            digest: manifest.digest(),
            kind: v1::ModelKind::Embedder.into(),
            dimensions: DIMENSIONS,
            max_tokens: 512,
            architecture: "BertModel".into(),
            ..v1::Checkpoint::default()
        }),
        tokenizer_sha256: "7".repeat(64),
        golden_vectors: texts.iter().flat_map(vector).collect(),
        golden_texts: texts,
    }
}
