//! Headers of `NumPy`'s array files, format 1.0.
//!
//! Source: `numpy.lib.format`: a magic string, two version bytes, the length of the rest as a little-endian
//! u16, and a Python literal padded with spaces and ended by a line feed so that the whole is a multiple of
//! 64 bytes.

use super::args::Encoding;

/// Bytes of every header written here: room for the largest shape, so it can be written again at the end.
pub(crate) const HEADER_BYTES: usize = 128;

/// How `NumPy` names the numbers.
pub(crate) fn dtype(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::F32 => "<f4",
        Encoding::F16 => "<f2",
        Encoding::Int8 => "|i1",
        Encoding::Binary => "|u1",
    }
}

/// The header of an array in C order, `shape` being a Python tuple.
pub(crate) fn header(dtype: &str, shape: &str) -> [u8; HEADER_BYTES] {
    let literal = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
    let mut header = [b' '; HEADER_BYTES];
    header[..10].copy_from_slice(b"\x93NUMPY\x01\x00\x76\x00"); // 0x76 = 128 - 10.
    header[10..10 + literal.len()].copy_from_slice(literal.as_bytes());
    header[HEADER_BYTES - 1] = b'\n';
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_numpy_writes() {
        let header = header(dtype(Encoding::F32), "(3, 384)");
        let (magic, rest) = header.split_at(10);
        assert_eq!(magic, b"\x93NUMPY\x01\x00\x76\x00");
        let literal = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 384), }";
        assert_eq!(std::str::from_utf8(rest).unwrap().trim_end_matches(' ').trim_end(), literal);
        assert_eq!(rest.last(), Some(&b'\n'));
    }

    #[test]
    fn the_largest_shape_has_room() {
        let header = header(dtype(Encoding::Int8), &format!("({}, {})", u64::MAX, u32::MAX));
        assert!(header.ends_with(b" \n"));
    }
}
