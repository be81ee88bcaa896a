//! Some rows of the matrix of scores: of a large batch not all of it is held at a time.

/// Queries whose scores are taken at once. What is a mean over queries is a sum over blocks, each with its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The first of them.
    pub first: i64,
    /// How many they are.
    pub rows: i64,
    /// Of how many that are compared.
    pub queries: i64,
}

impl Block {
    /// All of them.
    #[must_use]
    pub fn whole(queries: i64) -> Self {
        Self { first: 0, rows: queries, queries }
    }

    /// All of them, at most so many `scores` at a time; a row is never cut.
    #[must_use]
    pub fn cut(queries: i64, passages: i64, scores: i64) -> Vec<Self> {
        let rows = (scores / passages.max(1)).clamp(1, queries.max(1));
        let starts = (0..queries.div_euclid(rows) + i64::from(queries % rows != 0)).map(|at| at * rows);
        starts.map(|first| Self { first, rows: rows.min(queries - first), queries }).collect()
    }

    /// Passages of a query among so many.
    pub(super) fn group(self, passages: i64) -> i64 {
        passages / self.queries.max(1)
    }

    /// Where its queries' positives stand among passages in groups.
    pub(super) fn positives(self, group: i64) -> Vec<i64> {
        (self.first..self.first + self.rows).map(|query| query * group).collect()
    }

    /// Its part of a mean over all queries.
    #[allow(clippy::cast_precision_loss)] // A batch.
    pub(super) fn share(self) -> f64 {
        self.rows as f64 / self.queries.max(1) as f64
    }

    /// Those of its queries that are among `count` from `start`, counted from there; `None` where there are none.
    pub(super) fn within(self, start: i64, count: i64) -> Option<Self> {
        let (from, to) = (self.first.max(start), (self.first + self.rows).min(start + count));
        (from < to).then_some(Self { first: from - start, rows: to - from, queries: count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_all_rows_once() {
        for (queries, passages, scores, count) in
            [(7, 14, 1000, 1), (7, 14, 29, 4), (7, 14, 1, 7), (0, 0, 9, 0)]
        {
            let blocks = Block::cut(queries, passages, scores);
            assert_eq!(blocks.len(), count, "{blocks:?}");
            let rows: Vec<i64> = blocks.iter().flat_map(|b| b.first..b.first + b.rows).collect();
            assert_eq!(rows, (0..queries).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_a_block_has_of_a_ranks_queries() {
        let block = Block { first: 3, rows: 4, queries: 12 };
        assert_eq!(block.within(0, 3), None);
        assert_eq!(block.within(0, 6), Some(Block { first: 3, rows: 3, queries: 6 }));
        assert_eq!(block.within(6, 6), Some(Block { first: 0, rows: 1, queries: 6 }));
        assert_eq!(block.positives(2), [6, 8, 10, 12]);
    }
}
