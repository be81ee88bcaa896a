//! Headers of safetensors files: a length as a little-endian u64, then JSON, then the tensors' bytes.

use serde_json::{Map, Value, json};

use super::args::Encoding;
use super::rows::Shape;

/// The header of a file of `rows` vectors: tensor `embeddings`, and `scales` where there are any.
///
/// Its length depends on `metadata` and `shape` alone, never on `rows`, so it can be written again at the
/// end; what is not needed of it is filled with spaces, as the format allows.
pub(crate) fn header(metadata: &Map<String, Value>, shape: Shape, rows: u64) -> Vec<u8> {
    let longest = text(metadata, shape, u64::from(u32::MAX) * 1_000).len();
    let mut text = text(metadata, shape, rows).into_bytes();
    // The tensors begin at a multiple of 8.
    text.resize((longest + 8).next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}

fn text(metadata: &Map<String, Value>, shape: Shape, rows: u64) -> String {
    let dtype = match shape.encoding {
        Encoding::F32 => "F32",
        Encoding::F16 => "F16",
        Encoding::Int8 => "I8",
        Encoding::Binary => "U8",
    };
    let end = rows * shape.row_bytes() as u64;
    let mut header = json!({
        "__metadata__": metadata,
        "embeddings": { "dtype": dtype, "shape": [rows, shape.columns()], "data_offsets": [0, end] },
    });
    if shape.scaled() {
        header["scales"] = json!({ "dtype": "F32", "shape": [rows], "data_offsets": [end, end + 4 * rows] });
    }
    header.to_string()
}

#[cfg(test)]
mod tests {
    use ::safetensors::SafeTensors;

    use super::*;

    fn metadata() -> Map<String, Value> {
        let mut metadata = Map::new();
        metadata.insert("digest".to_owned(), "ab\"cd".into());
        metadata
    }

    #[test]
    fn a_header_is_as_long_before_the_rows_are_known_as_after() {
        for (encoding, dimensions) in [(Encoding::F32, 384), (Encoding::Int8, 7), (Encoding::Binary, 1_024)] {
            let shape = Shape { encoding, dimensions };
            let lengths = [0, 1, 999, 10_000_000_000].map(|rows| header(&metadata(), shape, rows).len());
            assert!(lengths.iter().all(|length| *length == lengths[0] && length % 8 == 0), "{lengths:?}");
        }
    }

    #[test]
    fn the_reference_reader_reads_it() {
        let shape = Shape { encoding: Encoding::Int8, dimensions: 3 };
        let mut file = header(&metadata(), shape, 2);
        file.extend([1, 2, 3, 4, 5, 6]);
        file.extend([0.5_f32, 0.25].iter().flat_map(|scale| scale.to_le_bytes()));
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let embeddings = tensors.tensor("embeddings").unwrap();
        assert_eq!((embeddings.shape(), embeddings.data()), (&[2, 3][..], &[1, 2, 3, 4, 5, 6][..]));
        assert_eq!(tensors.tensor("scales").unwrap().shape(), [2]);
        let (_, read) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(read.metadata().as_ref().unwrap()["digest"], "ab\"cd");
    }
}
