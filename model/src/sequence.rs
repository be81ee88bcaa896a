//! What goes into an encoder and what comes out.

/// Tokens of one text, or of one pair, special tokens included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, `[tokens]`; never empty.
    pub ids: Vec<u32>,
    /// Where the second segment of a pair starts; equal to the length for a single text. BERT adds another
    /// vector to the tokens of each segment.
    pub second: usize,
}

impl Sequence {
    /// A single text.
    #[must_use]
    pub fn single(ids: Vec<u32>) -> Self {
        Self { second: ids.len(), ids }
    }

    /// With tokens of no meaning up to `width`; their segment is the first.
    pub(crate) fn padded(&self, width: usize) -> Self {
        let mut padded = self.clone();
        if padded.second == self.tokens() {
            padded.second = width.max(self.tokens());
        }
        padded.ids.resize(width.max(self.tokens()), 0);
        padded
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// Rows of numbers, one per sequence of a batch, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    width: usize,
    data: Vec<f32>,
}

impl Rows {
    /// Rows of `width` numbers each.
    ///
    /// # Panics
    /// When `data` does not divide into rows of `width`.
    #[must_use]
    pub fn new(width: usize, data: Vec<f32>) -> Self {
        assert!(width > 0 && data.len().is_multiple_of(width), "{} numbers in rows of {width}", data.len());
        Self { width, data }
    }

    /// Numbers per row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The rows in order, each of [`Rows::width`] numbers.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.width)
    }
}

impl<'a> IntoIterator for &'a Rows {
    type Item = &'a [f32];
    type IntoIter = std::slice::ChunksExact<'a, f32>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Scales `row` to length 1, as `torch.nn.functional.normalize`: a row shorter than 1e-12 stays near zero.
pub fn normalize(row: &mut [f32]) {
    let length = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(1e-12);
    for x in row {
        #[allow(clippy::cast_possible_truncation)] // The quotient is at most 1.
        let scaled = (f64::from(*x) / length) as f32;
        *x = scaled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalised_rows_have_length_one() {
        let normalized = |mut row: Vec<f32>| {
            normalize(&mut row);
            row
        };
        assert_eq!(normalized(vec![3.0, 0.0, -4.0]), [0.6, 0.0, -0.8]);
        assert_eq!(normalized(vec![0.0; 3]), [0.0; 3]);
    }
}
