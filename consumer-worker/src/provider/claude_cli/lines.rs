//! The CLI's output, line by line, however it comes.

use sluice_shared::domain::Outcome;

use super::super::answer::too_large;

/// What has come of a line that is not over yet.
#[derive(Debug)]
pub(super) struct Lines {
    line: Vec<u8>,
    /// The longest line, in bytes.
    limit: usize,
    max_output_bytes: usize,
}

impl Lines {
    /// A line can repeat an answer of `max_output_bytes`, in JSON and with the rest of a result.
    pub(super) fn new(max_output_bytes: usize) -> Self {
        Self {
            line: Vec::new(),
            limit: max_output_bytes.saturating_mul(2).saturating_add(1 << 20),
            max_output_bytes,
        }
    }

    /// Gives each line that `chunk` completes to `take`.
    pub(super) fn feed(
        &mut self,
        chunk: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), Outcome>,
    ) -> Result<(), Outcome> {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (last, tail) = rest.split_at(end);
            self.line.extend_from_slice(last);
            take(&self.line)?;
            self.line.clear();
            rest = tail.get(1..).unwrap_or_default();
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > self.limit {
            Err(too_large(self.max_output_bytes))
        } else {
            Ok(())
        }
    }

    /// A last line without an end.
    pub(super) fn rest(&self) -> &[u8] {
        &self.line
    }
}
