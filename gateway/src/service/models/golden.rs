//! Holds what a worker makes of a publisher's golden inputs against what the publisher computed.

use cluster::{Golden, ListedVersion, ModelKind, Unfaithful};

use crate::error::{Defect, ManageError, Unmet};
use crate::wire::InvalidRequest;
use crate::wire::swaps::{Samples, Upload};

/// Characters of an input that a refusal repeats.
const EXCERPT: usize = 60;

/// Whether the samples of an upload can be of its checkpoint, as far as another one of `versions` tells: one of the same
/// files, or of the index space that it claims. Before anything is sent, and so before a worker knows.
///
/// # Errors
/// Names the first sample's answer.
pub(super) fn may_agree(upload: &Upload, versions: &[ListedVersion]) -> Result<(), InvalidRequest> {
    let Some(samples) = &upload.golden else { return Ok(()) };
    let is_same = |listed: &&ListedVersion| listed.version.manifest.is_of(&upload.files);
    let is_kin = |listed: &&ListedVersion| upload.index_space.as_ref() == Some(&listed.version.index_space);
    let Some(ListedVersion { digest, version, .. }) =
        versions.iter().find(is_same).or_else(|| versions.iter().find(is_kin))
    else {
        return Ok(());
    };
    samples.fit(&format!("checkpoint {digest}"), (version.kind, version.manifest.dimensions))
}

/// Whether `found`, what `worker` makes of the inputs of `samples`, is what the publisher does. The checkpoint's vectors
/// have so many `dimensions`.
///
/// # Errors
/// [`ManageError::Invalid`] where the samples are of another kind of checkpoint; [`ManageError::Unmet`] names the first input
/// about which they do not agree.
pub(super) fn agrees(
    samples: &Samples,
    (kind, dimensions): (ModelKind, usize),
    (worker, found): (&str, &[f32]),
) -> Result<(), ManageError> {
    samples.fit("the checkpoint", (kind, dimensions))?;
    let Err(unfaithful) = samples.golden.check(kind, dimensions, found) else { return Ok(()) };
    let (at, why) = match unfaithful {
        Unfaithful::Cosine { at, cosine } => {
            let bound = Golden::COSINE;
            (
                at,
                format!(
                    "the vector that worker {worker} makes of it and the publisher's have a cosine of {cosine:.4}, and {bound} is wanted"
                ),
            )
        }
        Unfaithful::Score { at, found, recorded } => {
            let bound = Golden::SCORE;
            (
                at,
                format!(
                    "worker {worker} scores it {found:.4}, the publisher {recorded:.4}, and they may differ by {bound}"
                ),
            )
        }
        Unfaithful::Numbers { .. } | Unfaithful::Malformed(_) => {
            return Err(Defect(unfaithful.to_string()).into());
        }
    };
    let excerpt: String = samples.golden.texts[at].chars().take(EXCERPT).collect();
    let subject = format!("begin.golden[{at}]");
    let sentence = format!("{subject}, {excerpt:?}: {why}");
    Err(Unmet { what: "GOLDEN", subject, sentence }.into())
}

#[cfg(test)]
mod tests {
    use cluster::GoldenSource;
    use tonic::{Code, Status};

    use super::*;

    #[track_caller]
    fn check(kind: ModelKind, theirs: &[f32], found: &[f32], expected: Option<(Code, &str)>) {
        let width = if kind == ModelKind::Embedder { 2 } else { 1 };
        let texts = (0..theirs.len() / width).map(|i| format!("input {i} {}", "and so on ".repeat(9)));
        let golden = Golden::new(texts.collect(), theirs, GoldenSource::Publisher);
        let said = agrees(&Samples { kind, width, golden }, (kind, 2), ("w1", found)).map_err(Status::from);
        match (said, expected) {
            (Ok(()), None) => {}
            (Err(status), Some((code, part))) => {
                assert_eq!(status.code(), code, "{status}");
                assert!(status.message().contains(part), "{}", status.message());
                assert!(status.message().len() < 250, "{}", status.message());
            }
            (said, expected) => panic!("{said:?} in place of {expected:?}"),
        }
    }

    #[test]
    fn the_first_input_that_differs_is_named_with_the_worker() {
        let (embedder, cross) = (ModelKind::Embedder, ModelKind::CrossEncoder);
        let theirs = [1.0, 0.0, 0.0, 1.0];
        check(embedder, &theirs, &[1.0, 0.01, 0.0, 1.0], None);
        let unmet = "begin.golden[1], \"input 1 and so on ";
        check(embedder, &theirs, &[1.0, 0.0, 1.0, 0.0], Some((Code::FailedPrecondition, unmet)));
        let why = "worker w1 makes of it and the publisher's have a cosine of 0.9950, and 0.999 is wanted";
        check(embedder, &theirs, &[1.0, 0.1, 0.0, 1.0], Some((Code::FailedPrecondition, why)));
        check(embedder, &theirs, &[0.0, 0.0, 0.0, 1.0], Some((Code::FailedPrecondition, "cosine of NaN")));
        check(cross, &[0.5, 0.9], &[0.505, 0.9], None);
        let why = "worker w1 scores it 0.7000, the publisher 0.9000, and they may differ by 0.01";
        check(cross, &[0.5, 0.9], &[0.5, 0.7], Some((Code::FailedPrecondition, why)));
        check(embedder, &theirs, &[1.0, 0.0], Some((Code::Internal, "internal error")));
    }

    #[test]
    fn samples_of_another_kind_are_the_publishers_fault() {
        let golden = Golden::new(vec!["q\na".into()], &[0.5], GoldenSource::Publisher);
        let samples = Samples { kind: ModelKind::CrossEncoder, width: 1, golden };
        let refused = agrees(&samples, (ModelKind::Embedder, 2), ("w1", &[0.6, 0.8])).unwrap_err();
        assert_eq!(Status::from(refused).code(), Code::InvalidArgument);
    }
}
