//! Files as sets of examples of their own, from which batches are made by themselves.

use std::path::{Path, PathBuf};

use super::corpus::{Corpus, Part};
use super::order::Set;
use crate::error::TrainError;

/// What becomes of small files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Files of a directory with fewer examples are put together; a file that is named itself is left out.
    pub small: usize,
    /// What was put together is left out where it has fewer.
    pub dropped: usize,
}

/// The sets of what was named: files, or directories with their files.
///
/// A name that ends in `no_in_batch_neg` says that negatives are the own group's alone.
///
/// # Errors
/// [`TrainError::Format`] for a file whose first line is no example.
pub fn sets(
    named: Vec<(PathBuf, Vec<Part>)>,
    batch: usize,
    thresholds: Thresholds,
) -> Result<(Vec<Set>, Corpus), TrainError> {
    let (mut sets, mut kept, mut next) = (Vec::new(), Vec::new(), 0);
    let mut add = |parts: Vec<Part>, batch: usize, own_group: bool| {
        let start = next;
        next += parts.iter().map(Part::len).sum::<usize>();
        kept.extend(parts);
        sets.push(Set { examples: (start..next).collect(), batch, own_group });
    };
    for (name, parts) in named {
        let is_file = name.extension().is_some_and(|kind| kind == "jsonl" || kind == "json");
        let own_group = own_group(&name);
        let (mut small, mut small_batch) = (Vec::new(), usize::MAX);
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let batch = part.read(0)?.batch(batch);
            if part.len() >= thresholds.small {
                add(vec![part], batch, own_group);
            } else if !is_file {
                small.push(part);
                small_batch = small_batch.min(batch);
            }
        }
        let examples: usize = small.iter().map(Part::len).sum();
        if examples > 0 && examples >= thresholds.dropped {
            add(small, small_batch, own_group);
        }
    }
    Ok((sets, Corpus::new(kept)))
}

/// A directory's whole name counts, and of a file's what stands before its last dot.
fn own_group(name: &Path) -> bool {
    let name = name.to_string_lossy();
    let stem = name.strip_suffix(".jsonl").or_else(|| name.strip_suffix(".json")).unwrap_or(&name);
    stem.ends_with("no_in_batch_neg")
}

#[cfg(test)]
mod tests {
    use super::super::python::Random;
    use super::*;

    fn part(lines: usize, more: &str) -> (tempfile::NamedTempFile, Part) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("{{\"query\":\"a\",\"pos\":[\"b\"],\"neg\":[\"c\"]{more}}}\n");
        std::fs::write(file.path(), line.repeat(lines)).unwrap();
        let part = Part::open(file.path(), usize::MAX, &mut Random::new(1)).unwrap();
        (file, part)
    }

    #[test]
    fn small_files_of_a_directory_go_together() {
        let files =
            [part(5, ""), part(2, ",\"batch_size\":3"), part(1, ""), part(9, ",\"type\":\"symmetric_sts\"")];
        let parts: Vec<Part> = files.iter().map(|(_, part)| part.clone()).collect();
        let named = vec![("data/kinds-no_in_batch_neg".into(), parts)];
        let thresholds = Thresholds { small: 3, dropped: 3 };
        let (sets_, corpus) = sets(named.clone(), 4, thresholds).unwrap();
        let found: Vec<(usize, usize)> = sets_.iter().map(|set| (set.examples.len(), set.batch)).collect();
        assert_eq!((found, corpus.len()), (vec![(5, 4), (9, 2), (3, 3)], 17));
        assert!(sets_.iter().all(|set| set.own_group));
        let (sets_, _) = sets(named, 4, Thresholds { small: 3, dropped: 4 }).unwrap();
        assert_eq!(sets_.len(), 2);
    }

    #[test]
    fn a_small_file_named_itself_is_left_out() {
        let (_file, part) = part(2, "");
        let named = |name: &str| vec![(PathBuf::from(name), vec![part.clone()])];
        let thresholds = Thresholds { small: 3, dropped: 0 };
        assert!(sets(named("data/a.jsonl"), 4, thresholds).unwrap().0.is_empty());
        let own_group = |name: &str| sets(named(name), 4, Thresholds::default()).unwrap().0[0].own_group;
        assert!(own_group("data/a_no_in_batch_neg.jsonl") && !own_group("data/a.jsonl"));
    }
}
