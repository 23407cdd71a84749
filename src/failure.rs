//! Why a command did not do what was asked, and the code it exits with.

use std::process::ExitCode;

use sluice_shared::config::ConfigError;

use crate::{client::ClientError, home::HomeError, output};

/// The exit codes that scripts can rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All that was asked for is done and went well.
    Done,
    /// It failed, or a job that was waited for did not succeed.
    Failed,
    /// The call or a file it names was wrong; nothing was done.
    Usage,
    /// It was interrupted; running it again goes on.
    Interrupted,
}

impl Exit {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Interrupted => 130,
        }
    }

    /// `Done` when `well`, `Failed` otherwise.
    #[must_use]
    pub fn when(well: bool) -> Self {
        if well { Self::Done } else { Self::Failed }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The call or a file it names was wrong.
    #[error("{0}")]
    Usage(String),
    /// The API said no, or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A file or stream cannot be read or written.
    #[error("{what}: {source}")]
    Io {
        /// Which, and what was to be done with it.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Who read standard output has gone away (`sluice list | head`): nothing is wrong.
    #[error("standard output was closed")]
    OutputClosed,
    /// A server role could not start or go on.
    #[error("{0:#}")]
    Role(#[from] anyhow::Error),
}

impl Failure {
    /// A wrong call.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// For `map_err` on what the file system says about `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            what: what.into(),
            source,
        }
    }

    /// Tells the person on standard error, and says how to exit.
    #[must_use]
    pub fn report(&self) -> Exit {
        match self {
            Self::OutputClosed => Exit::Done,
            Self::Client(error) => {
                output::note(&error.explain());
                if error.is_usage() {
                    Exit::Usage
                } else {
                    Exit::Failed
                }
            }
            Self::Usage(_) => {
                output::note(&format!("error: {self}"));
                Exit::Usage
            }
            Self::Config(_) | Self::Home(_) | Self::Io { .. } | Self::Role(_) => {
                output::note(&format!("error: {self}"));
                Exit::Failed
            }
        }
    }
}
