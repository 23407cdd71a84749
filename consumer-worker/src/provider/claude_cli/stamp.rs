//! Whether a file is still the one that it was.

use std::{io, path::Path, time::SystemTime};

/// What a file looks like from outside. Another one at its path has another.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

impl Stamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let file = std::fs::metadata(path)?;
        Ok(Self {
            modified: file.modified().ok(),
            length: file.len(),
        })
    }
}
