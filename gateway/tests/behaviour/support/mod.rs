//! What the tests hold at both ends: workers that do as they are told, and a cluster that is what a test says.

pub(crate) mod certificates;
pub(crate) mod cluster;
#[path = "../../../../cluster/tests/support/etcd.rs"]
pub(crate) mod etcd;
pub(crate) mod frames;
pub(crate) mod gateway;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod publisher;
pub(crate) mod raw;
pub(crate) mod trial;
pub(crate) mod worker;

use proto::v1;
use tonic::Status;
use tonic_types::StatusExt as _;

pub(crate) use self::gateway::Gateway;
pub(crate) use self::worker::FakeWorker;

/// Digests, made of one digit each.
pub(crate) fn digest(digit: char) -> String {
    std::iter::repeat_n(digit, 64).collect()
}

/// Numbers per vector of the fakes.
pub(crate) const DIMENSIONS: u32 = 4;

/// The vector that a fake makes of a text: it tells texts and checkpoints apart.
pub(crate) fn vector(digest: &str, text: &str) -> Vec<u8> {
    let mix = |hash: u32, byte: u8| hash.wrapping_mul(16_777_619) ^ u32::from(byte);
    let hash = text.bytes().fold(2_166_136_261, mix);
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    let of =
        |text: &str| f32::from(u16::try_from(text.bytes().map(u32::from).sum::<u32>() % 65_536).unwrap());
    let numbers =
        [f32::from(length), f32::from((hash >> 16) as u16), f32::from((hash & 0xffff) as u16), of(digest)];
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The score that a fake gives a document.
pub(crate) fn score(document: &str) -> f32 {
    let numbers = vector("", document);
    f32::from_le_bytes(numbers[4..8].try_into().unwrap())
}

/// `count` texts, no two alike, of about `words` words.
pub(crate) fn texts(count: usize, words: usize) -> Vec<String> {
    (0..count).map(|i| format!("text {i}{}", " and so on".repeat(words / 3))).collect()
}

pub(crate) fn embed(inputs: Vec<String>) -> v1::EmbedRequest {
    v1::EmbedRequest { model: "mini".into(), inputs, ..v1::EmbedRequest::default() }
}

pub(crate) fn rerank(documents: Vec<String>) -> v1::RerankRequest {
    v1::RerankRequest {
        model: "mini".into(),
        query: "what is it?".into(),
        documents,
        ..v1::RerankRequest::default()
    }
}

/// Holds the vectors of an answer against its inputs.
#[track_caller]
pub(crate) fn assert_vectors(answer: &v1::EmbedResponse, digest: &str, inputs: &[String]) {
    let dense = answer.dense.as_ref().unwrap();
    let expected: Vec<u8> = inputs.iter().flat_map(|text| vector(digest, text)).collect();
    assert!(dense.data == expected, "the vectors are not those of the inputs, in order");
    assert_eq!(answer.input_tokens.len(), inputs.len());
    assert_eq!(answer.provenance.as_ref().unwrap().digest, digest);
}

/// The field that a status names.
pub(crate) fn field(status: &Status) -> Option<String> {
    let violations = status.get_details_bad_request()?.field_violations;
    violations.into_iter().next().map(|violation| violation.field)
}
