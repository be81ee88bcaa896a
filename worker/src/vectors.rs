//! Rows of the model to vectors on the wire: cut, normalised, and packed as little-endian bytes.

use half::f16;
use model::normalize;
use proto::v1;

/// How each number travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Four bytes.
    F32,
    /// Two bytes, IEEE half precision.
    F16,
    /// One signed byte, and a factor per vector.
    Int8,
    /// One bit: whether it is above zero.
    Binary,
}

/// Whether vectors have length 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// They do.
    One,
    /// They are as the model made them.
    AsMade,
}

/// What vectors are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// How numbers travel.
    pub encoding: Encoding,
    /// Numbers per vector, at most the model's own; what is cut away is not counted in the length.
    pub dimensions: usize,
    /// How long vectors are.
    pub length: Length,
}

/// Packs rows of the model, each of at least [`Form::dimensions`] numbers, in order.
#[must_use]
pub fn pack(rows: Vec<Vec<f32>>, form: Form) -> v1::Vectors {
    let Form { encoding, dimensions, .. } = form;
    let mut data = Vec::with_capacity(rows.len() * encoding.bytes(dimensions));
    let mut scales = Vec::new();
    for row in rows {
        let row = shape(row, form);
        match encoding {
            Encoding::F32 => data.extend(row.iter().flat_map(|x| x.to_le_bytes())),
            Encoding::F16 => data.extend(row.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
            Encoding::Int8 => scales.push(quantise(&row, &mut data)),
            Encoding::Binary => data.extend(row.chunks(8).map(bits)),
        }
    }
    // A model's width fits; the wire has 32 bits for it.
    #[allow(clippy::cast_possible_truncation)]
    let dimensions = dimensions as u32;
    v1::Vectors { encoding: encoding.wire().into(), dimensions, data: data.into(), scales }
}

/// One row, cut and normalised as `form` says.
#[must_use]
pub fn shape(mut row: Vec<f32>, form: Form) -> Vec<f32> {
    row.truncate(form.dimensions);
    match form.length {
        Length::One => normalize(&mut row),
        Length::AsMade => {}
    }
    row
}

/// The logistic function: a logit to a score between 0 and 1.
#[must_use]
#[allow(clippy::cast_possible_truncation)] // Rounding is meant.
pub fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}

impl Encoding {
    /// Bytes of one vector.
    fn bytes(self, dimensions: usize) -> usize {
        match self {
            Self::F32 => 4 * dimensions,
            Self::F16 => 2 * dimensions,
            Self::Int8 => dimensions,
            Self::Binary => dimensions.div_ceil(8),
        }
    }

    fn wire(self) -> v1::Encoding {
        match self {
            Self::F32 => v1::Encoding::F32,
            Self::F16 => v1::Encoding::F16,
            Self::Int8 => v1::Encoding::Int8,
            Self::Binary => v1::Encoding::Binary,
        }
    }
}

/// Appends a byte per number; answers the factor that brings them back. The largest number becomes 127.
fn quantise(row: &[f32], data: &mut Vec<u8>) -> f32 {
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    // Zero also where the largest is so small that its 127th part is not a number any more.
    let steps = if scale > 0.0 { 127.0 / largest } else { 0.0 };
    #[allow(clippy::cast_possible_truncation)] // Within -127 and 127.
    data.extend(row.iter().map(|x| (x * steps).round().clamp(-127.0, 127.0) as i8).flat_map(i8::to_le_bytes));
    scale
}

/// Up to eight numbers, the first in the highest bit.
fn bits(numbers: &[f32]) -> u8 {
    numbers.iter().enumerate().fold(0, |byte, (i, &x)| byte | (u8::from(x > 0.0) << (7 - i)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(encoding: Encoding, dimensions: usize) -> Form {
        Form { encoding, dimensions, length: Length::AsMade }
    }

    #[track_caller]
    fn check(rows: &[&[f32]], form: Form, data: &[u8], scales: &[f32]) {
        let vectors = pack(rows.iter().map(|row| row.to_vec()).collect(), form);
        assert_eq!((&vectors.data[..], &vectors.scales[..]), (data, scales));
        assert_eq!(vectors.dimensions as usize, form.dimensions);
        assert_eq!(vectors.encoding(), form.encoding.wire());
    }

    #[test]
    fn numbers_are_little_endian() {
        check(&[&[1.0, -2.0]], form(Encoding::F32, 2), &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], &[]);
        check(&[&[1.0], &[-2.0]], form(Encoding::F16, 1), &[0, 0x3c, 0, 0xc0], &[]);
        check(&[], form(Encoding::F32, 3), &[], &[]);
    }

    #[test]
    fn the_largest_number_of_a_vector_is_127() {
        let rows: [&[f32]; 3] = [&[-254.0, 127.0, 1.0], &[0.0, 0.0, 0.0], &[0.5, 0.25, -0.5]];
        check(&rows, form(Encoding::Int8, 3), &[129, 64, 1, 0, 0, 0, 127, 64, 129], &[2.0, 0.0, 0.5 / 127.0]);
    }

    #[test]
    fn tiny_and_huge_vectors_are_quantised_too() {
        let mut data = Vec::new();
        assert_eq!(quantise(&[f32::from_bits(1), 0.0], &mut data).to_bits(), 0);
        assert_eq!(data, [0, 0]);
        assert!(quantise(&[f32::MAX, f32::MIN], &mut data).is_finite());
        assert_eq!(data[2..], [127, 129]);
    }

    #[test]
    fn bits_are_packed_from_the_top() {
        let row = [1.0, -1.0, 0.0, 2.0, -0.5, 0.5, 0.1, -0.1, 3.0, -3.0];
        check(&[&row, &row], form(Encoding::Binary, 10), &[0b1001_0110, 0b1000_0000].repeat(2), &[]);
    }

    #[test]
    fn a_cut_vector_is_normalised_after_the_cut() {
        let form = Form { encoding: Encoding::F32, dimensions: 2, length: Length::One };
        assert_eq!(shape(vec![3.0, 4.0, 99.0], form), [0.6, 0.8]);
        assert_eq!(shape(vec![3.0, 4.0, 99.0], Form { length: Length::AsMade, ..form }), [3.0, 4.0]);
        assert_eq!(shape(vec![0.0, 0.0, 1.0], form), [0.0, 0.0]);
    }
}
