//! What runs a prompt. A provider is an enum of the five kinds; each adapter maps what happened
//! to one [`Outcome`], and nothing else decides how an attempt ended.

use std::time::Duration;

use sluice_shared::domain::{JobId, Outcome, Request};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// One attempt, as a provider sees it.
#[derive(Clone, Copy, Debug)]
pub struct Prompt<'a> {
    /// Which job; also the seed of a simulated provider.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// The client's session, if any.
    pub session: Option<&'a str>,
    /// What to do.
    pub request: &'a Request,
    /// How long the provider may take in all; [`run`](Provider::run) itself ends in time.
    pub timeout: Duration,
}

/// Where the text goes as it comes. Sending never waits: who listens bounds it.
#[derive(Clone, Debug)]
pub struct Sink(mpsc::UnboundedSender<String>);

impl Sink {
    /// A sink and the receiving end of it.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// More text. Nobody may be listening any more, which is fine.
    pub fn text(&self, text: impl Into<String>) {
        drop(self.0.send(text.into()));
    }
}

/// What runs a prompt.
#[derive(Debug)]
pub enum Provider {
}

impl Provider {
    /// Runs one prompt to one outcome. Ends promptly when `cancel` is cancelled (with
    /// [`Outcome::Cancelled`]) or when the timeout is over (failed, `timeout`), and leaves no
    /// process behind.
    pub async fn run(&self, prompt: Prompt<'_>, cancel: &CancellationToken, sink: &Sink) -> Outcome {
        let _ = (prompt, cancel, sink);
        match *self {}
    }
}
