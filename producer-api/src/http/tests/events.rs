//! What happens, as it happens.

use std::time::Duration;

use axum::{body::Body, http::Request};
use futures::StreamExt;
use serde_json::Value;
use sluice_shared::{
    domain::{JobId, Lane, Span},
    live::Piece,
};

use crate::http::testing::Api;

/// A stream's events, as name, id and data.
struct Stream {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Stream {
    async fn open(api: &Api, path: &str, last: Option<&str>) -> Self {
        let mut request = Request::get(path).header("authorization", format!("Bearer {}", api.key));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Body::empty()).unwrap();
        let answer = tower::ServiceExt::oneshot(api.router.clone(), request)
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let (body, text) = (answer.into_body().into_data_stream(), String::new());
        Self { body, text }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let lines = event.lines().filter_map(|line| line.split_once(": "));
                    let mut found = lines.filter(|(field, _)| *field == name);
                    found
                        .next()
                        .map(|(_, value)| value.to_owned())
                        .unwrap_or_default()
                };
                let parsed = (field("event"), field("id"), field("data"));
                self.text = rest.to_owned();
                if parsed.0.is_empty() {
                    continue; // A heartbeat.
                }
                return Some((parsed.0, parsed.1, serde_json::from_str(&parsed.2).unwrap()));
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.body.next());
            let chunk = chunk.await.expect("an event in time")?;
            self.text += std::str::from_utf8(&chunk.unwrap()).unwrap();
        }
    }

    async fn named(&mut self, name: &str) -> (String, Value) {
        let (found, id, data) = self.next().await.unwrap();
        assert_eq!(found, name, "{data}");
        (id, data)
    }
}

async fn say(api: &Api, job: JobId, attempt: u32, text: &str) {
    let piece = Piece::Text {
        attempt,
        text: text.into(),
    };
    api.app
        .live
        .append(job, &[piece], Span::seconds(60))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_job_is_watched_from_its_submit_to_its_end() {
    let api = Api::start().await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    let path = format!("/api/jobs/{id}/events");
    let mut stream = Stream::open(&api, &path, None).await;
    assert_eq!(stream.named("state").await.1["state"], "queued");
    let dispatch = api.dispatch(&Lane::default()).await.pop().unwrap();
    say(&api, id, 1, "to be ").await;
    let mut seen = stream.next().await.unwrap();
    if seen.0 == "state" {
        assert_eq!(seen.2["state"], "dispatched");
        seen = stream.next().await.unwrap();
    }
    assert_eq!(
        (seen.0.as_str(), &seen.2["text"]),
        ("text", &"to be ".into())
    );
    say(&api, id, 2, "not ").await;
    let mut names = Vec::new();
    let data = loop {
        let (name, _, data) = stream.next().await.unwrap();
        names.push(name);
        if names.last().unwrap() == "text" {
            break data;
        }
    };
    assert!(names.iter().any(|name| name == "void"), "{names:?}");
    assert_eq!(data["attempt"], 2);
    api.succeed(&dispatch).await;
    let end = loop {
        let (name, _, data) = stream.next().await.unwrap();
        if name == "end" {
            break data;
        }
    };
    assert_eq!(
        (&end["state"], &end["result"]["text"]),
        (&"succeeded".into(), &"done".into())
    );
    assert!(stream.next().await.is_none(), "it ends by itself");
}

#[tokio::test]
async fn who_comes_late_gets_it_all_and_who_comes_back_the_rest() {
    let api = Api::start().await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    let dispatch = api.dispatch(&Lane::default()).await.pop().unwrap();
    for text in ["one ", "two ", "three"] {
        say(&api, id, 1, text).await;
    }
    api.succeed(&dispatch).await;
    let path = format!("/api/jobs/{id}/events");
    let mut stream = Stream::open(&api, &path, None).await;
    stream.named("state").await;
    let (first, data) = stream.named("text").await;
    assert_eq!(data["text"], "one ");
    for text in ["two ", "three"] {
        assert_eq!(stream.named("text").await.1["text"], text);
    }
    stream.named("end").await;
    let mut again = Stream::open(&api, &path, Some(&first)).await;
    again.named("state").await;
    assert_eq!(again.named("text").await.1["text"], "two ");
}

#[tokio::test]
async fn who_comes_back_hears_that_what_was_read_is_void() {
    let api = Api::start().await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    api.dispatch(&Lane::default()).await;
    say(&api, id, 1, "to be ").await;
    let path = format!("/api/jobs/{id}/events");
    let mut stream = Stream::open(&api, &path, None).await;
    stream.named("state").await;
    let (read, _) = stream.named("text").await;
    drop(stream);
    say(&api, id, 2, "not ").await;
    let mut again = Stream::open(&api, &path, Some(&read)).await;
    again.named("state").await;
    assert_eq!(again.named("void").await.1["attempt"], 1);
    assert_eq!(again.named("text").await.1["attempt"], 2);
}

#[tokio::test]
async fn a_stream_of_nothing_is_refused() {
    let api = Api::start().await;
    let line = format!("GET /api/jobs/{}/events", JobId::generate());
    assert_eq!(api.ask(&line, "").await.problem().1, "no_such_job");
    let request = Request::get(format!("/api/jobs/{}/events", JobId::generate()))
        .header("authorization", format!("Bearer {}", api.key))
        .header("last-event-id", "yesterday")
        .body(Body::empty())
        .unwrap();
    assert_eq!(api.send(request).await.problem().1, "bad_header");
    for query in ["?state=asleep", "?x=1"] {
        let answer = api.ask(&format!("GET /api/events{query}"), "").await;
        assert_eq!(answer.problem().1, "bad_parameter");
    }
}

#[tokio::test]
async fn all_changes_are_told_to_who_watches() {
    let api = Api::start().await;
    let mut all = Stream::open(&api, "/api/events", None).await;
    all.named("changes").await;
    let mut ends = Stream::open(&api, "/api/events?state=succeeded", None).await;
    ends.named("changes").await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    let told = all.named("changes").await.1;
    assert_eq!(told["changes"][0]["job"], id.to_string());
    assert_eq!(told["changes"][0]["state"], "queued");
    let dispatch = api.dispatch(&Lane::default()).await.pop().unwrap();
    api.succeed(&dispatch).await;
    let told = ends.named("changes").await.1;
    assert_eq!(told["changes"][0]["state"], "succeeded");
    assert_eq!(told["missed"], 0);
}

#[tokio::test]
async fn streams_end_with_the_process() {
    let api = Api::start().await;
    let mut all = Stream::open(&api, "/api/events", None).await;
    all.named("changes").await;
    api.shutdown.cancel();
    assert!(all.next().await.is_none());
}
