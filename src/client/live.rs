//! One job as it lives: its states, its text as it comes, its end. The connection may be lost and
//! found again on the way; who watches is told everything once.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use sluice_shared::{
    api::JobView,
    domain::{JobId, State},
};

use super::{
    Client, ClientError,
    sse::{Event, Events},
};

/// A stream that lasted this long was a good one: what breaks it is a new trouble.
const GOOD: Duration = Duration::from_secs(10);

/// Something that happens to a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// It is in this state.
    State {
        /// As it is now.
        job: Box<JobView>,
    },
    /// More of an attempt's text.
    Text {
        /// The attempt.
        attempt: u32,
        /// What it says.
        text: String,
    },
    /// The text of this attempt counts no more.
    Void {
        /// The attempt.
        attempt: u32,
    },
    /// It has ended.
    End {
        /// With the whole answer, or the error.
        job: Box<JobView>,
    },
}

/// A job that is watched.
#[derive(Debug)]
pub struct Live<'a> {
    client: &'a Client,
    id: JobId,
    stream: Option<Stream<'a>>,
    /// The last event that can be gone on behind.
    last: Option<String>,
    story: Story,
    failures: u32,
}

#[derive(Debug)]
struct Stream<'a> {
    events: Events<'a>,
    opened: Instant,
}

impl Client {
    /// Watches a job from its beginning, however late one comes.
    #[must_use]
    pub fn live(&self, id: JobId) -> Live<'_> {
        Live {
            client: self,
            id,
            stream: None,
            last: None,
            story: Story::default(),
            failures: 0,
        }
    }
}

impl Live<'_> {
    /// What happens next; `None` after the end. Bears a server that goes away for a while; `notice`
    /// hears of it, once for each trouble.
    ///
    /// # Errors
    /// When there is no such job, or the API says no.
    pub async fn next(
        &mut self,
        mut notice: impl FnMut(&ClientError),
    ) -> Result<Option<Happening>, ClientError> {
        while !self.story.ended {
            match self.advance().await {
                Ok(None) => {}
                Ok(happening) => {
                    self.failures = 0;
                    return Ok(happening);
                }
                Err(error) if error.is_transient() => {
                    let stream = self.stream.take();
                    if stream.is_some_and(|stream| stream.opened.elapsed() > GOOD) {
                        self.failures = 0;
                    }
                    self.failures += 1;
                    if self.failures == 1 {
                        notice(&error);
                    }
                    tokio::time::sleep(error.pause(self.failures)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// One step; gives what there is to tell.
    async fn advance(&mut self) -> Result<Option<Happening>, ClientError> {
        let Some(stream) = &mut self.stream else {
            let path = format!("api/jobs/{}/events", self.id);
            let request = self.client.request(Method::GET, &path);
            let events = self.client.events(request, self.last.as_deref()).await?;
            self.stream = Some(Stream {
                events,
                opened: Instant::now(),
            });
            return Ok(None);
        };
        let Some(event) = stream.events.next().await? else {
            return Err(self.client.broke_off("the stream of the job broke off"));
        };
        let happening = parse(&event).map_err(|error| stream.events.strange(&error))?;
        if event.id.is_some() {
            self.last = event.id;
        }
        Ok(happening.and_then(|happening| self.story.take(happening)))
    }
}

/// What an event says; nothing when it is of a kind that is not known here.
fn parse(event: &Event) -> Result<Option<Happening>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Text {
        attempt: u32,
        text: String,
    }
    #[derive(Deserialize)]
    struct Void {
        attempt: u32,
    }
    let job = || serde_json::from_slice(&event.data).map(Box::new);
    Ok(Some(match event.name.as_str() {
        "state" => Happening::State { job: job()? },
        "end" => Happening::End { job: job()? },
        "text" => {
            let Text { attempt, text } = serde_json::from_slice(&event.data)?;
            Happening::Text { attempt, text }
        }
        "void" => {
            let Void { attempt } = serde_json::from_slice(&event.data)?;
            Happening::Void { attempt }
        }
        _ => return Ok(None),
    }))
}

/// What was told. A stream that goes on behind another begins with the state again, so that what was
/// told already is left out. Pure.
#[derive(Debug, Default)]
struct Story {
    state: Option<(State, u32, bool)>,
    /// The attempt whose text was told and counts; 0 for none.
    attempt: u32,
    ended: bool,
}

impl Story {
    fn take(&mut self, happening: Happening) -> Option<Happening> {
        match &happening {
            Happening::State { job } => {
                let state = (job.state, job.attempt, job.cancel_requested);
                if self.state.replace(state) == Some(state) {
                    return None;
                }
            }
            Happening::Text { attempt, .. } => self.attempt = *attempt,
            // It is told again when the stream broke between it and the text of the next attempt.
            Happening::Void { attempt } => {
                if self.attempt != *attempt {
                    return None;
                }
                self.attempt = 0;
            }
            Happening::End { .. } => self.ended = true,
        }
        Some(happening)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(state: &str, attempt: u32) -> Value {
        json!({
            "id": "0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42", "state": state, "client": "ci",
            "lane": "any", "priority": 0, "attempt": attempt, "failures": 0, "max_attempts": 2,
            "delivery": "at_least_once", "timeout": "10m",
            "created_at": "2026-11-23T20:00:00.000Z",
        })
    }

    fn event(name: &str, data: &Value) -> Event {
        Event {
            name: name.into(),
            id: None,
            data: data.to_string().into(),
        }
    }

    fn told(events: &[(&str, Value)]) -> Vec<String> {
        let mut story = Story::default();
        let happenings = events
            .iter()
            .filter_map(|(name, data)| parse(&event(name, data)).unwrap())
            .flat_map(|happening| story.take(happening));
        let short = |happening: Happening| match happening {
            Happening::State { job } => format!("{} {}", job.state, job.attempt),
            Happening::Text { attempt, text } => format!("{attempt}: {text}"),
            Happening::Void { attempt } => format!("void {attempt}"),
            Happening::End { job } => format!("end {}", job.state),
        };
        happenings.map(short).collect()
    }

    fn text(attempt: u32, text: &str) -> (&'static str, Value) {
        ("text", json!({ "attempt": attempt, "text": text }))
    }

    #[test]
    fn a_stream_that_was_opened_again_tells_nothing_twice() {
        let events = [
            ("state", job("running", 1)),
            text(1, "a"),
            ("state", job("running", 1)),
            text(1, "b"),
            ("gossip", json!(7)),
            ("end", job("succeeded", 1)),
        ];
        assert_eq!(
            told(&events),
            ["running 1", "1: a", "1: b", "end succeeded"]
        );
    }

    #[test]
    fn text_is_void_once() {
        let void = || ("void", json!({"attempt": 1}));
        let said = [
            text(1, "a"),
            void(),
            ("state", job("running", 2)),
            void(),
            text(2, "b"),
        ];
        assert_eq!(told(&said), ["1: a", "void 1", "running 2", "2: b"]);
    }

    #[test]
    fn what_happens_is_one_line_of_json() {
        let (name, data) = text(1, "a\nb");
        let text = parse(&event(name, &data)).unwrap().unwrap();
        assert_eq!(
            serde_json::to_string(&text).unwrap(),
            r#"{"event":"text","attempt":1,"text":"a\nb"}"#
        );
        assert!(parse(&event("text", &json!({"attempt": 1}))).is_err());
    }
}
