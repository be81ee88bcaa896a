//! Tensors of the files of a checkpoint, read where they lie.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Kind, Tensor};
use torch_ext::MappedFile;

use crate::config::read_json;
use crate::error::LoadError;
use crate::state_dict::{self, Placed};
use crate::trainee::Task;

/// The one file of weights that are not in shards.
pub(crate) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bge-m3's two heads, where they lie in one file that is not a pickle.
const UNIFIED: &str = "m3_heads.safetensors";
/// The same, as the reference has them: a file of `torch.save` each, `colbert_linear.pt` and `sparse_linear.pt`.
pub(crate) const HEADS: [&str; 2] = ["colbert_linear", "sparse_linear"];
/// Names under which a body is saved inside a model with a head.
const PREFIXES: [&str; 3] = ["", "bert.", "roberta."];
/// Every family's first tensor, which shows the prefix.
const FIRST: &str = "embeddings.word_embeddings.weight";

/// The weight files of a checkpoint.
#[derive(Debug)]
pub(crate) struct Weights {
    files: Vec<(PathBuf, MappedFile)>,
    entries: HashMap<String, Entry>,
    prefix: &'static str,
    /// What errors about all files name.
    place: PathBuf,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    bytes: Range<usize>,
    shape: Vec<i64>,
    dtype: Dtype,
}

/// A tensor's bytes where they lie.
#[derive(Debug)]
pub(crate) struct Stored<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) shape: Vec<i64>,
    pub(crate) dtype: Dtype,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: HashMap<String, String>,
}

/// The weight files below `dir`, relative to it, and the index if there are shards.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    if dir.join(SINGLE).exists() {
        return Ok(vec![SINGLE.into()]);
    }
    let index = dir.join(INDEX);
    if !index.exists() {
        let what = format!("neither {SINGLE} nor {INDEX} is there");
        return Err(LoadError::unsupported(dir, what));
    }
    let shards: BTreeSet<String> = read_json::<IndexFile>(&index)?.weight_map.into_values().collect();
    if let Some(name) = shards.iter().find(|name| name.contains('/')) {
        return Err(LoadError::format(&index, format!("shard {name:?} is not a file beside it")));
    }
    Ok(std::iter::once(INDEX.into()).chain(shards.into_iter().map(PathBuf::from)).collect())
}

impl Weights {
    /// Maps the files and reads their headers.
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        let names = files(dir)?;
        let place = if names.len() == 1 { dir.join(SINGLE) } else { dir.to_owned() };
        let mut weights = Self { files: Vec::new(), entries: HashMap::new(), prefix: "", place };
        for name in names.iter().filter(|name| name.extension().is_some_and(|kind| kind == "safetensors")) {
            weights.add(dir.join(name))?;
        }
        let has = |prefix: &&str| weights.entries.contains_key(&format!("{prefix}{FIRST}"));
        weights.prefix = PREFIXES.into_iter().find(has).ok_or_else(|| weights.missing(FIRST))?;
        Ok(weights)
    }

    /// As [`open`](Self::open), with the files of heads that `task` needs, where they are there.
    pub(crate) fn open_for(dir: &Path, task: Task) -> Result<Self, LoadError> {
        let mut weights = Self::open(dir)?;
        if task == Task::Unified {
            weights.add_if_there(dir.join(UNIFIED))?;
            for head in HEADS {
                weights.add_layer_if_there(dir.join(format!("{head}.pt")), head)?;
            }
        }
        Ok(weights)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), LoadError> {
        let map = MappedFile::open(&path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
        let (header, metadata) =
            SafeTensors::read_metadata(map.bytes()).map_err(|error| LoadError::format(&path, error))?;
        let data = header + size_of::<u64>(); // The header's own length comes first.
        for (name, info) in metadata.tensors() {
            let shape = info.shape.iter().map(|&n| i64::try_from(n)).collect::<Result<_, _>>();
            let shape = shape.map_err(|error| LoadError::format(&path, format!("tensor {name}: {error}")))?;
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            self.entries.insert(name, Entry { file: self.files.len(), bytes, shape, dtype: info.dtype });
        }
        self.files.push((path, map));
        Ok(())
    }

    /// Adds a file of heads that lies beside the weights, if it is there.
    fn add_if_there(&mut self, path: PathBuf) -> Result<(), LoadError> {
        if path.exists() { self.add(path) } else { Ok(()) }
    }

    /// Adds the weight and the bias of the layer `layer` from a file of `torch.save` that lies beside the weights, if it is
    /// there. They take the place of others of the name.
    fn add_layer_if_there(&mut self, path: PathBuf, layer: &str) -> Result<(), LoadError> {
        if !path.exists() {
            return Ok(());
        }
        let map = MappedFile::open(&path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
        let tensors = state_dict::read(map.bytes()).map_err(|reason| LoadError::format(&path, reason))?;
        let mut names: Vec<&str> = tensors.iter().map(|placed| placed.name.as_str()).collect();
        names.sort_unstable();
        if names != ["bias", "weight"] {
            let reason = format!("weight and bias are wanted, and it has [{}]", names.join(", "));
            return Err(LoadError::format(&path, reason));
        }
        for Placed { name, dtype, shape, bytes } in tensors {
            let shape = shape.iter().map(|&n| i64::try_from(n)).collect::<Result<_, _>>();
            let shape = shape.map_err(|error| LoadError::format(&path, format!("tensor {name}: {error}")))?;
            self.entries
                .insert(format!("{layer}.{name}"), Entry { file: self.files.len(), bytes, shape, dtype });
        }
        self.files.push((path, map));
        Ok(())
    }

    /// The full name of a tensor of the body.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Whether there is a tensor of this full name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The name of a tensor of the body without what stands before all of them; none of another's.
    pub(crate) fn within_body<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(self.prefix)
    }

    /// A tensor of the body, as stored.
    pub(crate) fn body(&self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        self.tensor(&self.name(name), shape)
    }

    /// Every tensor's full name and bytes, as stored, in the order of names.
    pub(crate) fn stored(&self) -> BTreeMap<&str, Stored<'_>> {
        let stored = |entry: &Entry| Stored {
            bytes: &self.files[entry.file].1.bytes()[entry.bytes.clone()],
            shape: entry.shape.clone(),
            dtype: entry.dtype,
        };
        // The view borrows from `self`, not from the closure's argument.
        self.entries.iter().map(|(name, entry)| (name.as_str(), stored(entry))).collect()
    }

    /// A tensor by its full name, as stored.
    pub(crate) fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let entry = self.entries.get(name).ok_or_else(|| self.missing(name))?;
        let (path, map) = &self.files[entry.file];
        if entry.shape != shape {
            return Err(LoadError::Shape {
                path: path.clone(),
                tensor: name.to_owned(),
                wanted: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let kind = kind(entry.dtype).ok_or_else(|| {
            LoadError::unsupported(path, format!("tensor {name} is stored as {:?}", entry.dtype))
        })?;
        map.tensor(entry.bytes.clone(), shape, kind)
            .map_err(|error| LoadError::format(path, format!("tensor {name}: {error}")))
    }

    /// Name, count of numbers and bytes of every tensor.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.entries.iter().map(|(name, entry)| {
            let numbers = entry.shape.iter().filter_map(|&n| u64::try_from(n).ok()).product();
            (name.as_str(), numbers, entry.bytes.len() as u64)
        })
    }

    /// Where a tensor of the body lies.
    pub(crate) fn pages(&self, name: &str) -> Option<Pages> {
        let entry = self.entries.get(&format!("{}{name}", self.prefix))?;
        Some(Pages { map: self.files[entry.file].1.clone(), bytes: entry.bytes.clone() })
    }

    /// Gives back the memory of every page read so far.
    pub(crate) fn forget(&self) {
        for (_, map) in &self.files {
            Pages { map: map.clone(), bytes: 0..map.bytes().len() }.forget();
        }
    }

    fn missing(&self, name: &str) -> LoadError {
        LoadError::MissingTensor { path: self.place.clone(), tensor: name.to_owned() }
    }
}

/// A part of a mapped weight file.
#[derive(Debug)]
pub(crate) struct Pages {
    map: MappedFile,
    bytes: Range<usize>,
}

impl Pages {
    /// Gives back the memory of those read so far; they are read again when touched.
    pub(crate) fn forget(&self) {
        if let Err(error) = self.map.forget(self.bytes.clone()) {
            // The weights are read all the same; they only take more memory.
            tracing::debug!(%error, "pages were not given back");
        }
    }
}

fn kind(dtype: Dtype) -> Option<Kind> {
    [(Dtype::F32, Kind::Float), (Dtype::F16, Kind::Half), (Dtype::BF16, Kind::BFloat16)]
        .into_iter()
        .find_map(|(stored, kind)| (stored == dtype).then_some(kind))
}
