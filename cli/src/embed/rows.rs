//! The vectors of one answer, as the bytes that they arrived as.

use bytes::Bytes;
use half::f16;
use proto::v1::{self, Vectors};
use serde::{Serialize, Serializer};

use crate::failure::Failure;

use super::args::Encoding;

/// How a vector is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) encoding: Encoding,
    /// Numbers per vector.
    pub(crate) dimensions: usize,
}

impl Shape {
    /// Elements of a stored row: numbers, or with [`Encoding::Binary`] bytes.
    pub(crate) fn columns(self) -> usize {
        match self.encoding {
            Encoding::F32 | Encoding::F16 | Encoding::Int8 => self.dimensions,
            Encoding::Binary => self.dimensions.div_ceil(8),
        }
    }

    /// Bytes of a stored row.
    pub(crate) fn row_bytes(self) -> usize {
        match self.encoding {
            Encoding::F32 => 4 * self.dimensions,
            Encoding::F16 => 2 * self.dimensions,
            Encoding::Int8 | Encoding::Binary => self.columns(),
        }
    }

    /// Whether each vector has a factor of its own.
    pub(crate) fn scaled(self) -> bool {
        self.encoding == Encoding::Int8
    }
}

/// Vectors, one per text of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) shape: Shape,
    /// `[count, dimensions]` numbers, little-endian.
    pub(crate) data: Bytes,
    /// One per vector with [`Encoding::Int8`], else empty.
    pub(crate) scales: Vec<f32>,
}

impl Rows {
    /// Checks that the answer holds what was asked for: `count` vectors in the encoding `wanted`.
    pub(crate) fn parse(vectors: Vectors, wanted: v1::Encoding, count: usize) -> Result<Self, Failure> {
        let refuse = |fault: &str| Failure::Refused(format!("the server's answer is not sound: {fault}"));
        let encoding = match vectors.encoding() {
            v1::Encoding::Unspecified => return Err(refuse("it does not say how its numbers are stored")),
            v1::Encoding::F32 => Encoding::F32,
            v1::Encoding::F16 => Encoding::F16,
            v1::Encoding::Int8 => Encoding::Int8,
            v1::Encoding::Binary => Encoding::Binary,
        };
        if encoding.to_wire() != wanted {
            return Err(refuse("its numbers are not stored as was asked for"));
        }
        let Vectors { encoding: _, dimensions, data, scales } = vectors;
        let shape = Shape { encoding, dimensions: usize::try_from(dimensions).unwrap_or(0) };
        if dimensions == 0 || Some(data.len()) != shape.row_bytes().checked_mul(count) {
            return Err(refuse("it does not hold one vector for each text"));
        }
        if scales.len() != if shape.scaled() { count } else { 0 } {
            return Err(refuse("it does not hold one scale for each vector"));
        }
        Ok(Self { shape, data, scales })
    }

    /// The vectors one by one.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let rows = self.data.chunks_exact(self.shape.row_bytes());
        rows.enumerate().map(|(i, bytes)| Row {
            shape: self.shape,
            bytes,
            scale: self.scales.get(i).copied(),
        })
    }
}

/// One vector. Its JSON form is an array of what is stored: floats, signed bytes, or bits as bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) shape: Shape,
    pub(crate) bytes: &'a [u8],
    pub(crate) scale: Option<f32>,
}

impl Row<'_> {
    fn f32s(&self) -> impl Iterator<Item = f32> {
        self.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
    }

    fn f16s(&self) -> impl Iterator<Item = f32> {
        self.bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32())
    }

    fn i8s(&self) -> impl Iterator<Item = i8> {
        self.bytes.iter().map(|byte| i8::from_le_bytes([*byte]))
    }

    /// The first `count` numbers as they are meant, for people.
    pub(crate) fn head(&self, count: usize) -> Vec<f32> {
        let bit = |i: usize| f32::from(self.bytes[i / 8] >> (7 - i % 8) & 1);
        match self.shape.encoding {
            Encoding::F32 => self.f32s().take(count).collect(),
            Encoding::F16 => self.f16s().take(count).collect(),
            Encoding::Int8 => {
                let scale = self.scale.unwrap_or(1.0);
                self.i8s().take(count).map(|number| f32::from(number) * scale).collect()
            }
            Encoding::Binary => (0..self.shape.dimensions.min(count)).map(bit).collect(),
        }
    }
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.shape.encoding {
            Encoding::F32 => serializer.collect_seq(self.f32s()),
            Encoding::F16 => serializer.collect_seq(self.f16s()),
            Encoding::Int8 => serializer.collect_seq(self.i8s()),
            Encoding::Binary => serializer.collect_seq(self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(encoding: v1::Encoding, dimensions: u32, data: &[u8], scales: &[f32]) -> Vectors {
        Vectors { encoding: encoding.into(), dimensions, data: data.to_vec().into(), scales: scales.to_vec() }
    }

    #[track_caller]
    fn check(vectors: &Vectors, json: &str, head: &[f32]) {
        let rows = Rows::parse(vectors.clone(), vectors.encoding(), 1).unwrap();
        let row = rows.iter().next().unwrap();
        assert_eq!(serde_json::to_string(&row).unwrap(), json);
        assert_eq!(row.head(2), head);
    }

    #[test]
    fn numbers_are_read_as_they_are_stored() {
        let f32s: Vec<u8> = [0.1_f32, -2.0].iter().flat_map(|number| number.to_le_bytes()).collect();
        check(&vectors(v1::Encoding::F32, 2, &f32s, &[]), "[0.1,-2.0]", &[0.1, -2.0]);
        check(&vectors(v1::Encoding::F16, 2, &[0x00, 0x3c, 0x00, 0xb8], &[]), "[1.0,-0.5]", &[1.0, -0.5]);
        check(&vectors(v1::Encoding::Int8, 2, &[127, 0x80], &[0.5]), "[127,-128]", &[63.5, -64.0]);
        check(&vectors(v1::Encoding::Binary, 9, &[0x40, 0x80], &[]), "[64,128]", &[0.0, 1.0]);
    }

    #[track_caller]
    fn refuses(vectors: Vectors, fault: &str) {
        let failure = Rows::parse(vectors, v1::Encoding::Int8, 2).unwrap_err();
        assert_eq!(failure.to_string(), format!("the server's answer is not sound: {fault}"));
    }

    #[test]
    fn an_answer_that_does_not_fit_its_question_is_refused() {
        let one_vector_each = "it does not hold one vector for each text";
        refuses(vectors(v1::Encoding::Int8, 2, &[0; 3], &[1.0; 2]), one_vector_each);
        refuses(vectors(v1::Encoding::Int8, 0, &[], &[]), one_vector_each);
        refuses(
            vectors(v1::Encoding::Int8, 2, &[0; 4], &[1.0]),
            "it does not hold one scale for each vector",
        );
        refuses(vectors(v1::Encoding::F32, 1, &[0; 8], &[]), "its numbers are not stored as was asked for");
        let silent = "it does not say how its numbers are stored";
        refuses(vectors(v1::Encoding::Unspecified, 2, &[0; 4], &[]), silent);
    }
}
