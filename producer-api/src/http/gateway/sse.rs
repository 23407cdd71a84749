//! Streams of both dialects: made only as fast as their caller reads them.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::response::{Response, sse::Event};
use futures::stream;

use super::{
    fault::Fault,
    live::{Follow, Said},
};
use crate::http::events;

/// How long the head of an answer waits for the first text, so that what goes wrong at once has a
/// status. Less than what proxies wait for.
const HEAD: Duration = Duration::from_secs(15);

/// Says in events of a dialect what comes.
pub(in crate::http) trait Teller: Send + 'static {
    /// Before anything else.
    fn begin(&mut self, events: &mut VecDeque<Event>);
    /// More text, or the end.
    fn say(&mut self, said: Said, events: &mut VecDeque<Event>);
    /// It goes wrong in the middle; nothing follows.
    fn fail(&mut self, fault: Fault, events: &mut VecDeque<Event>);
}

/// What comes first; `None` when nothing came in time for the head.
pub(in crate::http) async fn first(follow: &mut Follow) -> Result<Option<Said>, Fault> {
    match tokio::time::timeout(HEAD, follow.next()).await {
        Ok(said) => said.map(Some),
        Err(_) => Ok(None),
    }
}

/// The answer, from its first event on.
pub(in crate::http) fn answer(
    follow: Follow,
    first: Option<Said>,
    mut teller: impl Teller,
) -> Response {
    let mut events = VecDeque::new();
    teller.begin(&mut events);
    let mut telling = Telling {
        follow,
        teller,
        events,
        ended: false,
    };
    if let Some(said) = first {
        telling.say(said);
    }
    events::answer(stream::unfold(telling, Telling::next))
}

struct Telling<T> {
    follow: Follow,
    teller: T,
    events: VecDeque<Event>,
    ended: bool,
}

impl<T: Teller> Telling<T> {
    fn say(&mut self, said: Said) {
        self.ended = matches!(said, Said::End(..));
        self.teller.say(said, &mut self.events);
    }

    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some((Ok(event), self));
            }
            if self.ended {
                return None;
            }
            match self.follow.next().await {
                Ok(said) => self.say(said),
                Err(fault) => {
                    self.ended = true;
                    self.teller.fail(fault, &mut self.events);
                }
            }
        }
    }
}
