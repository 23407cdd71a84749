//! What happens, as it happens: server-sent events of one job, and of all.
//!
//! A stream is made only as fast as its client reads it: text waits in the live plane, which is
//! bounded, and never in here. So a slow reader costs no memory and slows no worker.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, stream};
use serde::Serialize;
use sluice_shared::{
    api::{JobChange, JobChanges, JobView, Scope},
    domain::{JobId, Span, State as JobState},
    live::{Piece, StreamId},
};
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast},
    time::{Instant, timeout},
};

use super::{
    Edge,
    extract::{Caller, Id, NoParams, Params, single},
    jobs, list,
    problem::{ApiError, Code},
};

/// Streams open at once, at most.
pub(super) const MOST_STREAMS: usize = 10_000;

/// How often a comment says that the stream is alive.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long the truth plane is not asked while the live plane says nothing: the safety net behind
/// the news of state changes.
const LOOK: Duration = Duration::from_secs(2);

/// Pieces of text taken at once, and changes told at once, at most.
const MOST_PIECES: usize = 200;
const MOST_CHANGES: usize = 200;

/// State changes that come within this time are told together.
const GATHER: Duration = Duration::from_millis(100);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Watch a job: its states, its text as it comes, its end.
///
/// Server-sent events: `state` and `end` with the job as `GET` shows it; `text` with the attempt
/// and a piece of its text, from the beginning however late one comes; `void` when the text of an
/// earlier attempt counts no more, since another has begun to answer. With `Last-Event-ID` the
/// text goes on behind that piece, at any API process. The stream ends after `end`, which has the
/// whole answer.
#[utoipa::path(
    get, path = "/api/jobs/{id}/events", tag = "jobs", security(("key" = ["read"])),
    params(
        ("id" = JobId, Path, description = "the job"),
        ("Last-Event-ID" = Option<String>, Header, description = "the `id` of the last event"),
    ),
    responses(
        (status = 200, description = "Events, until the job has ended.",
            body = String, content_type = "text/event-stream"),
        (status = 404, description = "`no_such_job`"),
    )
)]
pub(super) async fn job_events(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    id: Id,
    _: NoParams,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (after, attempt) = match single(&headers, LAST_EVENT_ID)? {
        None => (StreamId::START, 0),
        Some(value) => place(value)?,
    };
    let permit = permit(&edge)?;
    // Before looking, or a change may be missed.
    let news = edge.app.feed.watch();
    let job = jobs::find(&edge, id.job()).await?;
    let watch = Watch {
        job,
        news,
        after,
        attempt,
        pending: VecDeque::new(),
        looked_at: Instant::now(),
        ended: false,
        is_new: true,
        edge,
        _permit: permit,
    };
    Ok(answer(stream::unfold(watch, Watch::next)))
}

/// Watch all jobs: their state changes, as they come.
///
/// Server-sent events `changes`: what came about at nearly the same time, and how much is not
/// told because it was too much.
#[utoipa::path(
    get, path = "/api/events", tag = "jobs", security(("key" = ["read"])),
    params(("state" = Option<String>, Query, description = "only these states, separated by commas")),
    responses(
        (status = 200, description = "`JobChanges`, without end.",
            body = JobChanges, content_type = "text/event-stream"),
    )
)]
pub(super) async fn all_events(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Read)?;
    let params = Params::parse(query.as_deref(), |name| name == "state")?;
    let states = params.get("state").map(list::states).transpose()?;
    let firehose = Firehose {
        news: edge.app.feed.watch(),
        states: states.unwrap_or_default(),
        is_new: true,
        _permit: permit(&edge)?,
        edge,
    };
    Ok(answer(stream::unfold(firehose, Firehose::next)))
}

pub(super) fn permit(edge: &Edge) -> Result<OwnedSemaphorePermit, ApiError> {
    let permit = edge.streams.clone().try_acquire_owned();
    permit.map_err(|_| ApiError::new(Code::Busy, "too many streams are open; try again"))
}

pub(super) fn answer(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let mut answer = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(HEARTBEAT))
        .into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A proxy that gathers answers would hold it back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// The id of a piece of text: where it is, and whose it is, so that who comes back with it hears that
/// the text is void when another attempt has begun meanwhile.
fn name(place: StreamId, attempt: u32) -> String {
    format!("{}-{}-{attempt}", place.0, place.1)
}

fn place(value: &HeaderValue) -> Result<(StreamId, u32), ApiError> {
    let parse = |text: &str| {
        let mut parts = text.split('-');
        let place = StreamId(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let attempt = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some((place, attempt))
    };
    value.to_str().ok().and_then(parse).ok_or_else(|| {
        let detail = "is not the id of an event of this stream";
        ApiError::field(Code::BadHeader, "Last-Event-ID", detail)
    })
}

fn event(name: &str, data: &impl Serialize) -> Event {
    // Its own types always serialise.
    let data = serde_json::to_string(data).unwrap_or_default();
    Event::default().event(name).data(data)
}

/// A piece of an attempt's text.
#[derive(Serialize)]
struct Text {
    attempt: u32,
    text: String,
}

/// The text of this attempt counts no more.
#[derive(Serialize)]
struct Void {
    attempt: u32,
}

/// One who watches a job.
struct Watch {
    edge: Arc<Edge>,
    job: JobView,
    news: broadcast::Receiver<Arc<[JobChange]>>,
    after: StreamId,
    /// The attempt whose text came last.
    attempt: u32,
    pending: VecDeque<Event>,
    looked_at: Instant,
    ended: bool,
    is_new: bool,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some((Ok(event), self));
            }
            if self.ended {
                return None;
            }
            if std::mem::take(&mut self.is_new) {
                self.pending.push_back(event("state", &self.job));
                continue;
            }
            let shutdown = self.edge.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.advance() => {}
            }
        }
    }

    /// Waits for something to tell, and looks at the truth plane now and then.
    async fn advance(&mut self) {
        if self.job.state.is_terminal() {
            // All of the text was told before the end was.
            if self.read(Span::seconds(0)).await {
                return;
            }
            self.pending.push_back(event("end", &self.job));
            self.ended = true;
            return;
        }
        let until = self.looked_at + LOOK;
        let (live, id) = (self.edge.app.live.clone(), self.job.id);
        let text = live.read(id, self.after, MOST_PIECES, Span(LOOK));
        tokio::select! {
            pieces = text => match pieces {
                Ok(pieces) if !pieces.is_empty() => return self.take(pieces),
                Ok(_) => {}
                Err(_) => tokio::time::sleep_until(until).await,
            },
            () = changed(&mut self.news, id) => {}
            () = tokio::time::sleep_until(until) => {}
        }
        self.look().await;
    }

    /// Whether there was text.
    async fn read(&mut self, wait: Span) -> bool {
        let read = self
            .edge
            .app
            .live
            .read(self.job.id, self.after, MOST_PIECES, wait);
        match timeout(LOOK, read).await {
            Ok(Ok(pieces)) if !pieces.is_empty() => {
                self.take(pieces);
                true
            }
            _ => false,
        }
    }

    fn take(&mut self, pieces: Vec<(StreamId, Piece)>) {
        for (id, piece) in pieces {
            self.after = id;
            let Piece::Text { attempt, text } = piece else {
                continue;
            };
            if self.attempt != 0 && attempt != self.attempt {
                let void = Void {
                    attempt: self.attempt,
                };
                self.pending.push_back(event("void", &void));
            }
            self.attempt = attempt;
            let text = event("text", &Text { attempt, text }).id(name(id, attempt));
            self.pending.push_back(text);
        }
    }

    async fn look(&mut self) {
        self.looked_at = Instant::now();
        let Ok(job) = jobs::find(&self.edge, self.job.id).await else {
            return; // The truth plane is away; the next look is soon.
        };
        let is_news = (job.state, job.attempt, job.cancel_requested)
            != (self.job.state, self.job.attempt, self.job.cancel_requested);
        self.job = job;
        if is_news && !self.job.state.is_terminal() {
            self.pending.push_back(event("state", &self.job));
        }
    }
}

/// Waits until the job has come into another state, or so much has happened that nobody knows.
async fn changed(news: &mut broadcast::Receiver<Arc<[JobChange]>>, job: JobId) {
    loop {
        match news.recv().await {
            Ok(changes) if changes.iter().any(|change| change.job == job) => return,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

/// One who watches all jobs.
struct Firehose {
    edge: Arc<Edge>,
    news: broadcast::Receiver<Arc<[JobChange]>>,
    states: Vec<JobState>,
    is_new: bool,
    _permit: OwnedSemaphorePermit,
}

impl Firehose {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if std::mem::take(&mut self.is_new) {
            // So that the client knows at once that it is heard.
            let hello = event("changes", &JobChanges::default());
            return Some((Ok(hello), self));
        }
        let shutdown = self.edge.shutdown.clone();
        let changes = tokio::select! {
            () = shutdown.cancelled() => return None,
            changes = self.gather() => changes,
        };
        Some((Ok(event("changes", &changes)), self))
    }

    /// What comes next, with what comes soon after it.
    async fn gather(&mut self) -> JobChanges {
        let mut gathered = JobChanges::default();
        while gathered.changes.is_empty() && gathered.missed == 0 {
            let news = self.news.recv().await;
            self.add(&mut gathered, news).await;
        }
        let until = Instant::now() + GATHER;
        while let Ok(news) = tokio::time::timeout_at(until, self.news.recv()).await {
            self.add(&mut gathered, news).await;
        }
        gathered
    }

    async fn add(
        &self,
        gathered: &mut JobChanges,
        news: Result<Arc<[JobChange]>, broadcast::error::RecvError>,
    ) {
        match news {
            Ok(changes) => {
                let asked = |change: &&JobChange| {
                    self.states.is_empty() || self.states.contains(&change.state)
                };
                for change in changes.iter().filter(asked) {
                    if gathered.changes.len() < MOST_CHANGES {
                        gathered.changes.push(change.clone());
                    } else {
                        gathered.missed += 1;
                    }
                }
            }
            Err(broadcast::error::RecvError::Lagged(batches)) => gathered.missed += batches,
            // It is closed only when the process ends.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
