//! Files of `torch.save`: a zip that holds a pickle and, stored as they are, the numbers of its tensors.
//!
//! Source: `torch/serialization.py` and `caffe2/serialize/inline_container.h` of `PyTorch`, file format 3.

use std::fs::File;
use std::io::{Cursor, Read as _, Write as _};
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Dtype;
use zip::read::ZipFile;
use zip::write::FileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::pickle::{self, Described};

/// Where records begin, for those who map them.
const ALIGNED: u16 = 64;

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Where its numbers lie in the file, row by row.
    pub(crate) bytes: Range<usize>,
}

/// The tensors in the file of these bytes.
///
/// # Errors
/// A sentence.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Placed>, String> {
    let mut zip = ZipArchive::new(Cursor::new(bytes))
        .map_err(|error| format!("it is no file of torch.save in the zip format: {error}"))?;
    let pickle = zip.file_names().find(|name| name.split('/').nth(1) == Some("data.pkl"));
    let pickle = pickle.ok_or("it is no file of torch.save: it has no data.pkl")?.to_owned();
    let root = pickle.trim_end_matches("data.pkl").to_owned();
    if let Ok(mut order) = zip.by_name(&format!("{root}byteorder")) {
        let mut text = String::new();
        order.read_to_string(&mut text).map_err(|error| error.to_string())?;
        if text != "little" {
            return Err(format!("its numbers are {text}-endian"));
        }
    }
    let described = pickle::read(&bytes[record(&mut zip, bytes, &pickle)?])?;
    let place = |(name, described): (String, Described)| {
        let record = record(&mut zip, bytes, &format!("{root}data/{}", described.storage))?;
        let placed = within(&described, record).ok_or_else(|| {
            format!("tensor {name} does not lie row by row in a record of its numbers: {described:?}")
        })?;
        Ok(Placed { name, dtype: described.dtype, shape: described.shape, bytes: placed })
    };
    described.into_iter().map(place).collect()
}

/// Where a record lies in the file.
fn record(zip: &mut ZipArchive<Cursor<&[u8]>>, bytes: &[u8], name: &str) -> Result<Range<usize>, String> {
    let found = zip.by_name(name).map_err(|error| format!("record {name}: {error}"))?;
    let placed = stored(&found).filter(|placed| bytes.get(placed.clone()).is_some());
    placed.ok_or_else(|| format!("record {name} is compressed, or not in the file"))
}

fn stored(found: &ZipFile<'_>) -> Option<Range<usize>> {
    let start = usize::try_from(found.data_start()).ok()?;
    let end = start.checked_add(usize::try_from(found.size()).ok()?)?;
    (found.compression() == CompressionMethod::Stored).then_some(start..end)
}

/// Where a tensor lies whose storage is `record`; none where it does not lie there, row by row.
fn within(described: &Described, record: Range<usize>) -> Option<Range<usize>> {
    let Described { storage: _, stored, dtype, offset, shape, strides } = described;
    let width = dtype.bitsize() / 8;
    let count = shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size))?;
    // Along a dimension of one place, a step leads nowhere.
    let rows = pickle::strides(shape);
    let by_rows = shape.len() == strides.len()
        && shape.iter().zip(strides.iter().zip(&rows)).all(|(size, (step, row))| *size <= 1 || step == row);
    let start = record.start.checked_add(offset.checked_mul(width)?)?;
    let end = start.checked_add(count.checked_mul(width)?)?;
    let whole = stored.checked_mul(width)? == record.len();
    (by_rows && whole && end <= record.end).then_some(start..end)
}

/// Writes tensors of single precision, each its name, shape and bytes, as `torch.load` reads them.
///
/// # Errors
/// As the operating system has it.
pub(crate) fn write(path: &Path, tensors: &[(&str, &[usize], &[u8])]) -> std::io::Result<()> {
    let root = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("archive");
    let mut zip = ZipWriter::new(File::create(path)?);
    let mut record = |name: &str, bytes: &[u8]| {
        // The same tensors, the same bytes.
        let options = FileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(bytes.len() > u32::MAX as usize);
        zip.start_file_aligned(format!("{root}/{name}"), options, ALIGNED)?;
        zip.write_all(bytes)
    };
    record("data.pkl", &pickle::write(tensors.iter().map(|(name, shape, _)| (*name, *shape))))?;
    record("byteorder", b"little")?;
    for (place, (_, _, bytes)) in tensors.iter().enumerate() {
        record(&format!("data/{place}"), bytes)?;
    }
    record("version", b"3\n")?;
    zip.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What `torch.save` made, by `tests/reference/heads.py`.
    fn golden(name: &str) -> Vec<u8> {
        fs::read(Path::new("../tests/golden/heads").join(name)).unwrap()
    }

    fn numbers(bytes: &[u8], placed: &Placed) -> Vec<f32> {
        let bytes = &bytes[placed.bytes.clone()];
        if placed.dtype == Dtype::F16 {
            let numbers = bytes.chunks_exact(2).map(|two| half::f16::from_le_bytes(two.try_into().unwrap()));
            return numbers.map(half::f16::to_f32).collect();
        }
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    #[test]
    fn files_of_torch_are_read() {
        for (name, dtype) in [
            ("single.pt", Dtype::F32),
            ("half.pt", Dtype::F16),
            ("module.pt", Dtype::F32),
            ("views.pt", Dtype::F32),
        ] {
            let bytes = golden(name);
            let read = read(&bytes).unwrap();
            let [weight, bias] = &read[..] else { panic!("{name}: {read:?}") };
            assert_eq!(
                (weight.name.as_str(), weight.shape.as_slice()),
                ("weight", [2, 3].as_slice()),
                "{name}"
            );
            assert_eq!(
                (bias.name.as_str(), bias.shape.as_slice(), bias.dtype),
                ("bias", [2].as_slice(), dtype)
            );
            assert_eq!(numbers(&bytes, weight), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5], "{name}");
            assert_eq!(numbers(&bytes, bias), [-1.0, 4.0], "{name}");
        }
    }

    #[test]
    fn what_is_written_is_what_torch_was_seen_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ours.pt");
        let bytes =
            |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let weight = bytes(&[0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        let bias = bytes(&[-1.0, 4.0]);
        write(&path, &[("weight", &[2, 3], &weight), ("bias", &[2], &bias)]).unwrap();
        let written = fs::read(&path).unwrap();
        let read = read(&written).unwrap();
        assert_eq!(numbers(&written, &read[0]), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        assert!(read.iter().all(|placed| placed.bytes.start.is_multiple_of(ALIGNED.into())));
        // `heads.py` reads this one by `torch.load(weights_only=True)`.
        assert!(written == golden("ours.pt"), "write it anew, and have heads.py read it");
    }

    #[test]
    fn what_torch_did_not_write_so_is_an_error() {
        for (name, part) in [
            ("double.pt", "torch DoubleStorage"),
            ("transposed.pt", "does not lie row by row"),
            ("list.pt", "the operation 0x5d"),
            ("number.pt", "no name of a tensor"),
        ] {
            let reason = read(&golden(name)).unwrap_err();
            assert!(reason.contains(part), "{name}: {reason}");
        }
        assert!(read(b"\x80\x02\x8a\x0al\xfc\x9cF").unwrap_err().contains("no file of torch.save"));
        let whole = golden("single.pt");
        for cut in (0..whole.len()).step_by(97) {
            assert!(read(&whole[..cut]).is_err(), "{cut}");
        }
    }
}
