//! The live plane in this process's memory.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{LiveError, Piece, Presence, StreamId, Wake};
use crate::domain::{JobId, Span};

/// This process's memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<()>);

fn later<T>() -> Result<T, LiveError> {
    Err(LiveError::Unavailable("not written yet".into()))
}

impl Memory {
    pub(super) fn wake(&self, _wake: &Wake) -> Result<(), LiveError> {
        later()
    }
    pub(super) fn wakes(&self) -> UnboundedReceiver<Wake> {
        tokio::sync::mpsc::unbounded_channel().1
    }
    pub(super) fn beat(&self, _presence: &Presence, _ttl: Span) -> Result<(), LiveError> {
        later()
    }
    pub(super) fn leave(&self, _worker: &str) -> Result<(), LiveError> {
        later()
    }
    pub(super) fn workers(&self) -> Result<Vec<Presence>, LiveError> {
        later()
    }
    pub(super) fn append(&self, _job: JobId, _pieces: &[Piece], _ttl: Span) -> Result<(), LiveError> {
        later()
    }
    pub(super) async fn read(&self, _job: JobId, _after: StreamId, _most: usize, _wait: Span) -> Result<Vec<(StreamId, Piece)>, LiveError> {
        later()
    }
}
