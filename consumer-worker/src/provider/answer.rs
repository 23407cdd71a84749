//! An answer as it grows: bounded, and on its way to whoever listens.

use std::borrow::Cow;

use sluice_shared::domain::{Figure, Outcome};

use super::Sink;

/// The text so far.
pub(super) struct Answer<'a> {
    text: String,
    limit: usize,
    sink: &'a Sink,
}

impl<'a> Answer<'a> {
    pub(super) fn new(limit: usize, sink: &'a Sink) -> Self {
        Self {
            text: String::new(),
            limit,
            sink,
        }
    }

    /// Appends `delta` and sends it on; an error when the answer has become too long.
    pub(super) fn push(&mut self, delta: &str) -> Result<(), Outcome> {
        if delta.is_empty() {
            return Ok(());
        }
        if self.text.len().saturating_add(delta.len()) > self.limit {
            return Err(too_large(self.limit));
        }
        let delta = storable(delta);
        self.text.push_str(&delta);
        self.sink.text(delta);
        Ok(())
    }

    /// What the provider says about its own limits.
    pub(super) fn learn(&self, figures: impl IntoIterator<Item = Figure>) {
        self.sink.learn(figures);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// What an answer beyond `limit` bytes comes to.
pub(super) fn too_large(limit: usize) -> Outcome {
    Outcome::failed(
        "output_too_large",
        format!("the answer is longer than {limit} bytes (worker.max_output_bytes)"),
    )
}

/// `text` without NUL, which a model may write and Postgres cannot keep in a text.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}
