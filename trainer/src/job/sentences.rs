//! What is wrong with a field, in a sentence that begins with it.

/// What is wrong with a number that is to be at least 1.
pub(super) fn positive(field: &str, value: usize) -> Option<String> {
    (value == 0).then(|| format!("{field} is 0, at least 1 is wanted"))
}

/// Texts of one kind in a batch of a rank at most, 16 times the paper's: their numbers alone take memory.
const MOST: usize = 1 << 20;

/// What is wrong with a number of texts.
pub(super) fn count(field: &str, value: usize) -> Option<String> {
    positive(field, value)
        .or_else(|| (value > MOST).then(|| format!("{field} is {value}, at most {MOST} is taken")))
}

/// What is wrong with a field that is given where it means nothing.
pub(super) fn only_for(field: &str, given: bool, wanted: &str, there: bool) -> Option<String> {
    (given && !there).then(|| format!("{field} is only for {wanted}"))
}
