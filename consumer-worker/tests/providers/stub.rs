//! A server that plays Anthropic's Messages API and OpenAI's chat completions, for tests: it
//! answers as it is told to and keeps what it was asked. Needs nothing but its imports, so that
//! other test binaries can take it in by `#[path]` (expecting `dead_code` where they use a part).
//!
//! Without a word it answers every prompt at once and well.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode},
    response::Response,
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// What the server answers with.
#[derive(Clone, Debug)]
pub(crate) enum Play {
    /// A whole answer in these pieces, as the API that was asked would stream it.
    Answer(Vec<String>),
    /// This, as it is.
    Http {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// A 200 with these chunks, each sent by itself.
    Stream { chunks: Vec<Bytes>, end: End },
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As HTTP says.
    Whole,
    /// By a broken connection.
    Cut,
    /// Not before the client goes.
    Never,
}

/// What the server was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// The server. It is gone when this is dropped.
pub(crate) struct Stub {
    pub(crate) url: String,
    inner: Arc<Inner>,
    _server: JoinSet<()>,
}

struct Inner {
    play: Mutex<Play>,
    asked: watch::Sender<Vec<Asked>>,
    /// Streams that are open now.
    open: watch::Sender<usize>,
}

impl Play {
    pub(crate) fn answer(pieces: &[&str]) -> Self {
        Self::Answer(pieces.iter().map(|piece| (*piece).to_owned()).collect())
    }

    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::Http {
            status,
            headers: Vec::new(),
            body: body.to_string(),
        }
    }

    /// The same with one more header.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Self::Http { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }

    /// An error of Anthropic's API.
    pub(crate) fn anthropic_error(status: u16, kind: &str, message: &str) -> Self {
        let error = json!({"type": kind, "message": message});
        Self::json(
            status,
            &json!({"type": "error", "error": error, "request_id": "req_1"}),
        )
    }

    /// An error of OpenAI's API.
    pub(crate) fn openai_error(status: u16, kind: &str, code: Value, message: &str) -> Self {
        let error = json!({"message": message, "type": kind, "param": null, "code": code});
        Self::json(status, &json!({ "error": error }))
    }

    pub(crate) fn stream(chunks: impl IntoIterator<Item = String>, end: End) -> Self {
        Self::Stream {
            chunks: chunks.into_iter().map(Bytes::from).collect(),
            end,
        }
    }
}

/// The events of an answer of Anthropic's API: two, one for each piece, and three.
pub(crate) fn anthropic_events(model: &str, pieces: &[String]) -> Vec<String> {
    let event = |data: Value| {
        let name = data["type"].as_str().unwrap_or_default().to_owned();
        format!("event: {name}\ndata: {data}\n\n")
    };
    let message = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": null, "stop_sequence": null,
        "usage": {
            "input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 4,
            "output_tokens": 1, "service_tier": "standard",
        },
    });
    let mut events = vec![
        event(json!({"type": "message_start", "message": message})),
        event(json!({
            "type": "content_block_start", "index": 0,
            "content_block": {"type": "text", "text": ""},
        })),
    ];
    events.extend(pieces.iter().map(|piece| {
        let delta = json!({"type": "text_delta", "text": piece});
        event(json!({"type": "content_block_delta", "index": 0, "delta": delta}))
    }));
    events.extend([
        event(json!({"type": "content_block_stop", "index": 0})),
        event(json!({
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"output_tokens": 25},
        })),
        event(json!({"type": "message_stop"})),
    ]);
    events
}

/// The events of an answer of OpenAI's API: one for each piece, the finish reason, the usage,
/// and the end.
pub(crate) fn openai_events(model: &str, pieces: &[String]) -> Vec<String> {
    let chunk = |choices: Value, usage: Value| {
        let data = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_795_000_000,
            "model": model, "choices": choices, "usage": usage,
        });
        format!("data: {data}\n\n")
    };
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    let mut events: Vec<String> = pieces
        .iter()
        .map(|piece| chunk(choice(json!({"content": piece}), Value::Null), Value::Null))
        .collect();
    events.extend([
        chunk(choice(json!({}), json!("stop")), Value::Null),
        chunk(
            json!([]),
            json!({
                "prompt_tokens": 17, "completion_tokens": 25, "total_tokens": 42,
                "prompt_tokens_details": {"cached_tokens": 4},
            }),
        ),
        "data: [DONE]\n\n".to_owned(),
    ]);
    events
}

impl Stub {
    /// A server that answers every prompt at once and well.
    pub(crate) async fn start() -> Self {
        let inner = Arc::new(Inner {
            play: Mutex::new(Play::answer(&["Hello", " there"])),
            asked: watch::Sender::new(Vec::new()),
            open: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(serve).with_state(Arc::clone(&inner));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            url,
            inner,
            _server: server,
        }
    }

    /// From now on, answer with this.
    pub(crate) fn play(&self, play: Play) {
        *self.inner.play.lock().unwrap() = play;
    }

    /// All that it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.inner.asked.borrow().clone()
    }

    /// All that it was asked since the last time.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        self.inner.asked.send_replace(Vec::new())
    }

    /// Waits until no client reads a stream any more.
    pub(crate) async fn is_alone(&self) {
        let mut open = self.inner.open.subscribe();
        within(open.wait_for(|open| *open == 0)).await.unwrap();
    }
}

/// `work`, which has to be done in a time that is always enough.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("this should be done by now")
}

async fn serve(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    // The CLI looks whether there is anyone before it asks.
    if head.method == Method::HEAD {
        return Response::default();
    }
    let body = axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = head.uri.path().to_owned();
    let asked = Asked {
        path: path.clone(),
        headers: head.headers,
        body: body.clone(),
    };
    inner.asked.send_modify(|all| all.push(asked));
    let play = inner.play.lock().unwrap().clone();
    match play {
        Play::Http {
            status,
            headers,
            body,
        } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Body::from(body)).unwrap()
        }
        Play::Answer(_) if head.method == Method::GET => Response::new(Body::from(
            json!({"object": "list", "data": []}).to_string(),
        )),
        Play::Answer(pieces) => {
            let model = body["model"].as_str().unwrap_or("stub-1");
            let events = match path.ends_with("/chat/completions") {
                true => openai_events(model, &pieces),
                false => anthropic_events(model, &pieces),
            };
            streamed(
                &inner,
                events.into_iter().map(Bytes::from).collect(),
                End::Whole,
            )
        }
        Play::Stream { chunks, end } => streamed(&inner, chunks, end),
    }
}

fn streamed(inner: &Arc<Inner>, chunks: Vec<Bytes>, end: End) -> Response {
    let open = Open::new(inner);
    let chunks = stream::iter(chunks).then(|chunk| async move {
        // Each chunk by itself: otherwise they would travel together.
        tokio::task::yield_now().await;
        Ok::<_, std::io::Error>(chunk)
    });
    let last = stream::once(async move {
        match end {
            End::Whole => Ok(Bytes::new()),
            End::Cut => {
                // What was sent before is to arrive: a reset at once would overtake it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut, as it was told to"))
            }
            End::Never => {
                let never: Infallible = std::future::pending().await;
                match never {}
            }
        }
    });
    let body = chunks.chain(last).inspect(move |_| {
        let _ = &open;
    });
    let mut response = Response::new(Body::from_stream(body));
    *response.status_mut() = StatusCode::OK;
    response
        .headers_mut()
        .insert("content-type", "text/event-stream".parse().unwrap());
    response
}

/// A stream that is open as long as this lives.
struct Open(Arc<Inner>);

impl Open {
    fn new(inner: &Arc<Inner>) -> Self {
        inner.open.send_modify(|open| *open += 1);
        Self(Arc::clone(inner))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}
