//! One job as it lives: its states, its text as it comes, its end. The connection may be lost and
//! found again on the way; who watches is told everything once.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

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
    pending: VecDeque<Happening>,
    failures: u32,
}

#[derive(Debug)]
struct Stream<'a> {
    events: Events<'a>,
    opened: Instant,
    /// It was opened behind an event of one before.
    is_behind: bool,
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
            pending: VecDeque::new(),
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
        loop {
            if let Some(happening) = self.pending.pop_front() {
                return Ok(Some(happening));
            }
            if self.story.ended {
                return Ok(None);
            }
            match self.advance().await {
                Ok(()) => {}
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
    }

    async fn advance(&mut self) -> Result<(), ClientError> {
        let Some(stream) = &mut self.stream else {
            let path = format!("api/jobs/{}/events", self.id);
            let request = self.client.request(Method::GET, &path);
            let events = self.client.events(request, self.last.as_deref()).await?;
            self.stream = Some(Stream {
                events,
                opened: Instant::now(),
                is_behind: self.last.is_some(),
            });
            return Ok(());
        };
        let Some(event) = stream.events.next().await? else {
            return Err(self.client.broke_off("the stream of the job broke off"));
        };
        let happening = parse(&event).map_err(|error| stream.events.strange(&error))?;
        let Some(happening) = happening else {
            return Ok(());
        };
        if stream.is_behind
            && let Some(void) = self.story.begin_anew(&happening)
        {
            self.pending.extend(void);
            (self.stream, self.last) = (None, None);
            return Ok(());
        }
        if event.id.is_some() {
            self.last = event.id;
        }
        self.pending.extend(self.story.take(happening));
        if !self.pending.is_empty() {
            self.failures = 0;
        }
        Ok(())
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

/// What was told. Each stream begins with the state and knows nothing of the one before, so that
/// what was told already is left out, and what fell between two streams is put in. Pure.
#[derive(Debug, Default)]
struct Story {
    state: Option<(State, u32, bool)>,
    /// The attempt whose text was told and counts; 0 for none.
    attempt: u32,
    /// The attempt whose text was told last, whether it counts or not.
    heard: u32,
    /// Text of attempts before this one counts no more, told or not.
    first: u32,
    ended: bool,
}

impl Story {
    /// Whether another attempt than the one that was heard has begun, seen on a stream that goes on
    /// behind its text; gives what is void by that. The live plane may have been lost in between
    /// and count its pieces from 1 again, so that such a stream would leave out the beginning of
    /// the new text: that is to be read on a stream from the beginning.
    fn begin_anew(&mut self, happening: &Happening) -> Option<Vec<Happening>> {
        let attempt = match happening {
            Happening::State { job } => job.attempt,
            Happening::Text { attempt, .. } => *attempt,
            Happening::Void { .. } | Happening::End { .. } => return None,
        };
        if attempt <= self.heard {
            return None;
        }
        self.first = attempt;
        let void = self.attempt;
        Some(self.take(Happening::Void { attempt: void }))
    }

    fn take(&mut self, happening: Happening) -> Vec<Happening> {
        match &happening {
            Happening::State { job } => {
                let state = (job.state, job.attempt, job.cancel_requested);
                if self.state.replace(state) == Some(state) {
                    return Vec::new();
                }
            }
            Happening::Text { attempt, .. } => {
                if *attempt < self.first {
                    return Vec::new();
                }
                self.heard = *attempt;
                let before = std::mem::replace(&mut self.attempt, *attempt);
                if before != 0 && before != *attempt {
                    return vec![Happening::Void { attempt: before }, happening];
                }
            }
            Happening::Void { attempt } => {
                if self.attempt == 0 || self.attempt != *attempt {
                    return Vec::new();
                }
                self.attempt = 0;
            }
            Happening::End { .. } => self.ended = true,
        }
        vec![happening]
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
    fn text_is_void_once_also_when_nobody_said_so() {
        let said = [text(1, "a"), ("void", json!({"attempt": 1})), text(2, "b")];
        assert_eq!(told(&said), ["1: a", "void 1", "2: b"]);
        let unsaid = [text(1, "a"), text(2, "b")];
        assert_eq!(told(&unsaid), ["1: a", "void 1", "2: b"]);
        let other = [text(2, "b"), ("void", json!({"attempt": 1}))];
        assert_eq!(told(&other), ["2: b"]);
    }

    #[test]
    fn another_attempt_is_read_from_its_beginning() {
        let mut story = Story::default();
        let take = |story: &mut Story, (name, data): (&str, Value)| {
            story.take(parse(&event(name, &data)).unwrap().unwrap())
        };
        let text = |attempt| text(attempt, "a");
        take(&mut story, ("state", job("running", 1)));
        assert_eq!(take(&mut story, text(1)).len(), 1);
        let same = parse(&event("state", &job("queued", 1))).unwrap().unwrap();
        assert_eq!(story.begin_anew(&same), None);
        let other = parse(&event("state", &job("running", 2))).unwrap().unwrap();
        let void = Happening::Void { attempt: 1 };
        assert_eq!(story.begin_anew(&other), Some(vec![void]));
        assert_eq!(take(&mut story, ("state", job("running", 2))).len(), 1);
        assert_eq!(take(&mut story, text(1)), [], "it is void already");
        assert_eq!(take(&mut story, text(2)).len(), 1);
        assert_eq!(story.begin_anew(&other), None);
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
