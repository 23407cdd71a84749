//! A private directory for one run of a program, gone when the run is over.

use std::{io, path::PathBuf};

use tempfile::TempDir;

/// A directory that only we can enter, with three empty ones and files of ours in it.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: TempDir,
    /// Where the program is started.
    pub(super) work: PathBuf,
    /// What it takes for its home: nothing of anyone's is in there.
    pub(super) home: PathBuf,
    /// Where it may leave temporary files.
    pub(super) tmp: PathBuf,
}

impl Scratch {
    pub(super) fn new() -> io::Result<Self> {
        // `tempfile` makes it with mode 0700.
        let dir = tempfile::Builder::new().prefix("sluice-").tempdir()?;
        let [work, home, tmp] = ["work", "home", "tmp"].map(|name| dir.path().join(name));
        for path in [&work, &home, &tmp] {
            std::fs::create_dir(path)?;
        }
        Ok(Self {
            dir,
            work,
            home,
            tmp,
        })
    }

    /// A file beside the three directories.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
