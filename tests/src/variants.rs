//! Checkpoints like one that the repository carries, and yet others: their vectors tell them apart.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

use crate::{checkpoint, floats};

/// How far a variant's vectors are from the original's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// Well beyond what arithmetic changes, and yet so little (cosine above 0.9995) that an index need not notice.
    Kin,
    /// As those of another model.
    Stranger,
}

impl Distance {
    /// What is added to or taken from each number of the embeddings of words, for their root mean square.
    fn step(self) -> f32 {
        match self {
            Self::Kin => 0.01,
            Self::Stranger => 1.5,
        }
    }
}

/// Writes into `parent` a copy of the BERT `of` with vectors of its own; the same `number`, the same bytes.
pub fn variant(of: &Path, number: u64, distance: Distance, parent: &Path) -> PathBuf {
    let dir = parent.join(format!("{distance:?}-{number}").to_lowercase());
    copy_files(of, &dir);
    rewrite(&dir, |tensors| {
        // Each word by itself, so that texts differ in how they differ.
        let is_words = |tensor: &&mut Tensor| tensor.name.ends_with("word_embeddings.weight");
        let words = tensors.iter_mut().find(is_words).unwrap();
        let old = floats(&words.data);
        let squares: f32 = old.iter().map(|number| number * number).sum();
        #[allow(clippy::cast_precision_loss, reason = "a rough mean")]
        let step = distance.step() * (squares / old.len() as f32).sqrt();
        let sign = |i: usize| if mix(number << 32 | i as u64) & 1 == 0 { 1.0 } else { -1.0 };
        let new = old.iter().enumerate().map(|(i, old)| old + sign(i) * step);
        words.data = new.flat_map(f32::to_le_bytes).collect();
    });
    dir
}

/// Writes into `parent` a copy of the checkpoint `bert-cls` that has its layers over and over, `layers` in all: as slow
/// as that, and a stranger.
pub fn deep_variant(layers: usize, parent: &Path) -> PathBuf {
    let dir = parent.join(format!("deep-{layers}"));
    copy_files(Path::new(&checkpoint("bert-cls")), &dir);
    rewrite(&dir, |tensors| {
        for layer in 3..layers {
            let from = format!("encoder.layer.{}.", layer % 3);
            let of_layer = tensors.iter().filter(|tensor| tensor.name.starts_with(&from));
            let to = format!("encoder.layer.{layer}.");
            let copies: Vec<_> = of_layer
                .map(|tensor| Tensor { name: tensor.name.replace(&from, &to), ..tensor.clone() })
                .collect();
            tensors.extend(copies);
        }
    });
    edit_config(&dir, |fields| fields["num_hidden_layers"] = json!(layers));
    dir
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let config = dir.join("config.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    edit(&mut fields);
    fs::write(&config, fields.to_string()).unwrap();
}

/// Writes into `parent` a checkpoint as the carried `bert-cls` would be if it were 1,024 wide: 250 MB of random weights, so
/// that two of them are felt by a memory.
pub fn heavy_variant(parent: &Path) -> PathBuf {
    let wide = |size: usize| match size {
        48 => 1_024,
        96 => 8_192,
        other => other,
    };
    let dir = parent.join("heavy");
    copy_files(Path::new(&checkpoint("bert-cls")), &dir);
    rewrite(&dir, |tensors| {
        tensors.retain(|tensor| tensor.dtype == safetensors::Dtype::F32);
        for (number, tensor) in tensors.iter_mut().enumerate() {
            tensor.shape = tensor.shape.iter().map(|size| wide(*size)).collect();
            let is_scale = tensor.name.ends_with("LayerNorm.weight");
            let numbers = 0..tensor.shape.iter().product::<usize>() as u64;
            let draw = |i| if is_scale { 1.0 } else { small(mix((number as u64) << 32 | i)) };
            tensor.data = numbers.flat_map(|i| draw(i).to_le_bytes()).collect();
        }
    });
    edit_config(&dir, |fields| {
        for size in ["hidden_size", "intermediate_size"] {
            let small = fields[size].as_u64().unwrap();
            fields[size] = json!(wide(usize::try_from(small).unwrap()));
        }
    });
    dir
}

/// A number about as large as weights are at their start.
#[allow(clippy::cast_precision_loss, reason = "any small number")]
fn small(bits: u64) -> f32 {
    ((bits >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.1
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

fn rewrite(dir: &Path, change: impl FnOnce(&mut Vec<Tensor>)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let old = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, view): (String, TensorView<'_>)| Tensor {
        name,
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    };
    let mut tensors: Vec<_> = old.tensors().into_iter().map(owned).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|tensor| {
        (&tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap())
    });
    serialize_to_file(views, None, &path).unwrap();
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let copied = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_files(&entry.path(), &copied);
        } else {
            fs::copy(entry.path(), copied).unwrap();
        }
    }
}

/// Bits that look random. Source: Steele, Lea and Flood 2014, `SplitMix64`.
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
