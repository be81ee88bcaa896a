//! What the fake answers, as pure functions.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use proto::v1::{Encoding, Vectors};

/// Numbers per vector unless asked for fewer.
pub(crate) const DIMENSIONS: usize = 8;

/// The vector of a text by a checkpoint: multiples of 1/64 in [-1, 1), exact in f32 and in f16.
pub(crate) fn vector(digest: &str, text: &str, dimensions: usize) -> Vec<f32> {
    let number = |i: usize| {
        let mut hasher = DefaultHasher::new();
        (digest, text, i).hash(&mut hasher);
        let step = i16::try_from(hasher.finish() % 128).unwrap() - 64;
        f32::from(step) / 64.0
    };
    (0..dimensions).map(number).collect()
}

/// How many tokens the fake sees in a text.
pub(crate) fn tokens(text: &str) -> u32 {
    u32::try_from(text.split_whitespace().count()).unwrap() + 2
}

/// The rows as they travel.
pub(crate) fn encode(rows: &[Vec<f32>], encoding: Encoding) -> Vectors {
    let mut data = Vec::new();
    let mut scales = Vec::new();
    for row in rows {
        match encoding {
            Encoding::Unspecified | Encoding::F32 => data.extend(row.iter().flat_map(|x| x.to_le_bytes())),
            Encoding::F16 => data.extend(row.iter().flat_map(|x| half(*x).to_le_bytes())),
            Encoding::Int8 => {
                scales.push(1.0 / 64.0);
                #[allow(clippy::cast_possible_truncation)]
                data.extend(row.iter().flat_map(|x| ((x * 64.0) as i8).to_le_bytes()));
            }
            Encoding::Binary => data.extend(row.chunks(8).map(pack)),
        }
    }
    let encoding = if encoding == Encoding::Unspecified { Encoding::F32 } else { encoding };
    let dimensions = u32::try_from(rows.first().map_or(0, Vec::len)).unwrap();
    Vectors { encoding: encoding.into(), dimensions, data: data.into(), scales }
}

fn pack(bits: &[f32]) -> u8 {
    bits.iter().enumerate().map(|(i, x)| u8::from(*x > 0.0) << (7 - i)).sum()
}

/// Half precision of a multiple of 1/64 below 1 in size: such numbers need no rounding.
fn half(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = if x == 0.0 { 0 } else { (((bits >> 23) & 0xff) - 112) << 10 | (bits >> 13) & 0x3ff };
    u16::try_from(sign | magnitude).unwrap()
}
