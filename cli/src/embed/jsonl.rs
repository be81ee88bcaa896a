//! JSON lines: one object per text.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

use super::calls::Answer;
use super::rows::Row;

/// Its fields, in the order in which they are written.
#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    /// Lines are cut, sorted and joined by other tools: each says which checkpoint it is of.
    digest: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f32>,
    embedding: Row<'a>,
}

/// Writes the lines of an answer.
pub(crate) fn write(out: &mut impl Write, answer: &Answer) -> io::Result<()> {
    for (place, (row, id)) in (answer.batch.first..).zip(answer.rows.iter().zip(&answer.batch.ids)) {
        let digest = &answer.provenance.digest;
        let line = Line { index: place, id: id.as_ref(), digest, scale: row.scale, embedding: row };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
