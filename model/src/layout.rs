//! A batch without padding: sequences laid end to end, the short ones first.
//!
//! Linear layers see one matrix `[tokens, hidden]`. Attention on a processor runs once per group of sequences of
//! equal length; on CUDA once for all.

use crate::sequence::Sequence;

/// Batches of up to this many rows are rounded up to a multiple of [`FINE`], larger ones of [`COARSE`].
const FEW: usize = 256;
const FINE: usize = 16;
const COARSE: usize = 32;

/// Sequences of equal length, or padded to it, next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Row of the first token.
    pub(crate) start: i64,
    /// How many sequences.
    pub(crate) count: i64,
    /// Rows of each.
    pub(crate) tokens: i64,
}

/// Where everything of a batch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Token ids, `[tokens]`.
    pub(crate) ids: Vec<i64>,
    /// 1 for tokens of a pair's second part, `[tokens]`.
    pub(crate) segments: Vec<i64>,
    /// Each token's place in its own sequence, from 0, `[tokens]`.
    pub(crate) places: Vec<i64>,
    /// Row of each sequence's first token in laid-out order, and the end, `[sequences + 1]`. Filler counts as a
    /// sequence.
    pub(crate) starts: Vec<i64>,
    /// Tokens of each sequence in laid-out order, `[sequences]`: fewer than its rows where it is padded.
    pub(crate) lengths: Vec<i64>,
    /// Runs of equal length.
    pub(crate) groups: Vec<Group>,
    /// For each sequence as given, its place in laid-out order, `[sequences]`.
    pub(crate) places_of: Vec<i64>,
}

impl Layout {
    /// Lays out a batch.
    pub(crate) fn new(batch: &[&Sequence]) -> Self {
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_by_key(|&i| batch[i].tokens());
        let tokens = batch.iter().map(|sequence| sequence.tokens()).sum();
        let mut layout = Self {
            ids: Vec::with_capacity(tokens),
            segments: Vec::with_capacity(tokens),
            places: Vec::with_capacity(tokens),
            starts: Vec::with_capacity(batch.len() + 1),
            lengths: Vec::with_capacity(batch.len()),
            groups: Vec::new(),
            places_of: vec![0; batch.len()],
        };
        for (&i, place) in order.iter().zip(0..) {
            layout.places_of[i] = place;
            layout.push(batch[i]);
        }
        layout.starts.push(layout.rows());
        layout
    }

    /// Lays out a batch in its order, each sequence padded to `width`, as the reference does: the same sums in the
    /// same order.
    pub(crate) fn padded(batch: &[&Sequence], width: usize) -> Self {
        let padded: Vec<Sequence> = batch.iter().map(|sequence| sequence.padded(width)).collect();
        let mut layout = Self::new(&padded.iter().collect::<Vec<_>>());
        let lengths = batch.iter().map(|sequence| i64::try_from(sequence.tokens()).unwrap_or(i64::MAX));
        // All are of one length now, and keep their order.
        layout.lengths = lengths.collect();
        layout
    }

    /// Whether a group's sequences are padded.
    pub(crate) fn is_ragged(&self, group: &Group) -> bool {
        self.lengths_of(group).iter().any(|&length| length < group.tokens)
    }

    /// Tokens of each sequence of a group.
    pub(crate) fn lengths_of(&self, group: &Group) -> &[i64] {
        let first = self.starts.partition_point(|&start| start < group.start);
        let count = usize::try_from(group.count).unwrap_or(0);
        self.lengths.get(first..first + count).unwrap_or_default()
    }

    /// Adds filler tokens up to a round number of rows.
    ///
    /// oneDNN compiles code for every number of rows that it meets and keeps it, about 100 KB for each linear layer's
    /// shape: without rounding a worker's memory grows with the variety of its batches.
    pub(crate) fn round_up(mut self) -> Self {
        let rows = self.ids.len();
        let filler = rows.next_multiple_of(if rows > FEW { COARSE } else { FINE }) - rows;
        if filler > 0 {
            let tokens = i64::try_from(filler).unwrap_or_default();
            self.groups.push(Group { start: self.rows(), count: 1, tokens });
            for column in [&mut self.ids, &mut self.segments, &mut self.places] {
                column.resize(rows + filler, 0);
            }
            self.starts.push(self.rows());
            self.lengths.push(tokens);
        }
        self
    }

    fn push(&mut self, sequence: &Sequence) {
        let (start, second) = (self.rows(), sequence.second);
        self.starts.push(start);
        self.ids.extend(sequence.ids.iter().map(|&id| i64::from(id)));
        self.segments.extend((0..sequence.tokens()).map(|place| i64::from(place >= second)));
        self.places.extend((0_i64..).take(sequence.tokens()));
        let tokens = self.rows() - start;
        self.lengths.push(tokens);
        match self.groups.last_mut() {
            Some(group) if group.tokens == tokens => group.count += 1,
            _ => self.groups.push(Group { start, count: 1, tokens }),
        }
    }

    fn rows(&self) -> i64 {
        i64::try_from(self.ids.len()).unwrap_or(i64::MAX)
    }

    /// Tokens of the longest sequence.
    pub(crate) fn longest(&self) -> i64 {
        self.groups.iter().map(|group| group.tokens).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_form_groups() {
        let sequences = [vec![7, 8, 9], vec![1], vec![4, 5, 6], vec![2]].map(Sequence::single);
        let layout = Layout::new(&sequences.iter().collect::<Vec<_>>());
        assert_eq!(layout.ids, [1, 2, 7, 8, 9, 4, 5, 6]);
        assert_eq!(layout.places, [0, 0, 0, 1, 2, 0, 1, 2]);
        assert_eq!(layout.starts, [0, 1, 2, 5, 8]);
        assert_eq!(layout.places_of, [2, 0, 3, 1]);
        let groups = [Group { start: 0, count: 2, tokens: 1 }, Group { start: 2, count: 2, tokens: 3 }];
        assert_eq!(layout.groups, groups);
        assert_eq!(layout.longest(), 3);
    }

    #[test]
    fn filler_comes_after_the_sequences() {
        let sequence = Sequence::single(vec![5; 270]);
        let (plain, round) = (Layout::new(&[&sequence]), Layout::new(&[&sequence]).round_up());
        assert_eq!((round.ids.len(), round.places.len(), round.segments.len()), (288, 288, 288));
        assert_eq!(round.ids[..270], plain.ids);
        assert_eq!(round.starts, [0, 270, 288]);
        assert_eq!(round.groups[1], Group { start: 270, count: 1, tokens: 18 });
        assert_eq!(round.places_of, plain.places_of);
        assert_eq!(Layout::new(&[&sequence, &sequence]).round_up().ids.len(), 544);
        assert_eq!(round.clone().round_up(), round);
    }

    #[test]
    fn padded_sequences_keep_their_order_and_their_lengths() {
        let sequences = [vec![7, 8, 9], vec![1]].map(Sequence::single);
        let layout = Layout::padded(&sequences.iter().collect::<Vec<_>>(), 4);
        assert_eq!(layout.ids, [7, 8, 9, 0, 1, 0, 0, 0]);
        assert_eq!(layout.places, [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!((&layout.starts, &layout.lengths), (&vec![0, 4, 8], &vec![3, 1]));
        assert_eq!(layout.groups, [Group { start: 0, count: 2, tokens: 4 }]);
        assert!(layout.is_ragged(&layout.groups[0]));
        let even = Layout::new(&sequences.iter().collect::<Vec<_>>());
        assert!(even.groups.iter().all(|group| !even.is_ragged(group)));
        assert_eq!(even.lengths_of(&even.groups[1]), [3]);
    }

    #[test]
    fn the_second_part_of_a_pair_is_marked() {
        let pair = Sequence { ids: vec![1, 2, 3, 4], second: 3 };
        assert_eq!(Layout::new(&[&pair]).segments, [0, 0, 0, 1]);
    }
}
