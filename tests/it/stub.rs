//! A provider played on this machine: the Messages API and chat completions, streamed, with an
//! answer that a function makes of each request. It keeps the book that real providers keep: what
//! it was asked, how often, and how much at once.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot};

use crate::harness::rest;

/// One request, as far as tests care.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ask {
    /// The credential that it came with.
    pub(crate) key: String,
    /// The last thing that was said.
    pub(crate) prompt: String,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) enum Play {
    /// This text.
    Answer(String),
    /// This text, after some milliseconds.
    Slowly(u64, String),
    /// An error with this status and code.
    Refuse(u16, &'static str),
    /// Too many requests: come back after these seconds.
    Throttle(u64),
}

/// A provider that runs until it is dropped.
pub(crate) struct Stub {
    address: String,
    book: Arc<Book>,
    _stop: oneshot::Sender<()>,
}

struct Book {
    play: Box<dyn Fn(&Ask) -> Play + Send + Sync>,
    state: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    asked: HashMap<Ask, usize>,
    /// By key: when each request came.
    arrivals: BTreeMap<String, Vec<Instant>>,
    /// By key: requests under way, and the most that ever were.
    at_once: BTreeMap<String, (usize, usize)>,
    /// Every request's body.
    bodies: String,
    /// What was sent to it as a collector of traces.
    exports: Vec<Vec<u8>>,
}

impl Stub {
    /// Starts it on a thread of its own, so that a busy test does not slow it down.
    pub(crate) async fn start(play: impl Fn(&Ask) -> Play + Send + Sync + 'static) -> Self {
        let book = Arc::new(Book {
            play: Box::new(play),
            state: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, address) = oneshot::channel();
        let router = Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/messages/count_tokens", post(count))
            .route("/v1/chat/completions", post(completions))
            .route("/v1/traces", post(traces))
            // The CLI warms its connection up.
            .route("/", any(async || StatusCode::OK))
            .with_state(book.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                started
                    .send(listener.local_addr().unwrap().to_string())
                    .unwrap();
                tokio::select! {
                    served = axum::serve(listener, router) => served.unwrap(),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        Self {
            address: address.await.unwrap(),
            book,
            _stop: stop,
        }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests came that `is` holds for.
    pub(crate) fn count(&self, is: impl Fn(&Ask) -> bool) -> usize {
        let state = self.book.state.lock().unwrap();
        state
            .asked
            .iter()
            .filter(|(ask, _)| is(ask))
            .map(|(_, times)| times)
            .sum()
    }

    /// How often each prompt came.
    pub(crate) fn prompts(&self) -> BTreeMap<String, usize> {
        let mut prompts = BTreeMap::new();
        for (ask, times) in &self.book.state.lock().unwrap().asked {
            *prompts.entry(ask.prompt.clone()).or_default() += times;
        }
        prompts
    }

    /// When each request with this key came, oldest first.
    pub(crate) fn arrivals(&self, key: &str) -> Vec<Instant> {
        let state = self.book.state.lock().unwrap();
        state.arrivals.get(key).cloned().unwrap_or_default()
    }

    /// What was sent to it as a collector of traces.
    pub(crate) fn exports(&self) -> Vec<Vec<u8>> {
        self.book.state.lock().unwrap().exports.clone()
    }

    /// Everything that was sent, as it came.
    pub(crate) fn bodies(&self) -> String {
        self.book.state.lock().unwrap().bodies.clone()
    }

    /// The most requests that were ever under way at once with this key.
    pub(crate) fn most_at_once(&self, key: &str) -> usize {
        self.book
            .state
            .lock()
            .unwrap()
            .at_once
            .get(key)
            .map_or(0, |(_, most)| *most)
    }
}

impl fmt::Debug for Stub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stub")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A request that is under way; over when its answer is sent or its connection is lost.
struct UnderWay {
    book: Arc<Book>,
    key: String,
}

impl UnderWay {
    fn begin(book: &Arc<Book>, ask: &Ask, body: &Value) -> Self {
        let mut state = book.state.lock().unwrap();
        state.bodies += &format!("{body}\n");
        *state.asked.entry(ask.clone()).or_default() += 1;
        let arrivals = state.arrivals.entry(ask.key.clone()).or_default();
        arrivals.push(Instant::now());
        let (now, most) = state.at_once.entry(ask.key.clone()).or_default();
        *now += 1;
        *most = (*most).max(*now);
        Self {
            book: book.clone(),
            key: ask.key.clone(),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some((now, _)) = self.book.state.lock().unwrap().at_once.get_mut(&self.key) {
            *now -= 1;
        }
    }
}

async fn traces(State(book): State<Arc<Book>>, body: Bytes) -> StatusCode {
    book.state.lock().unwrap().exports.push(body.to_vec());
    StatusCode::OK
}

async fn messages(
    State(book): State<Arc<Book>>,
    headers: HeaderMap,
    body: Json<Value>,
) -> Response {
    answer(book, &headers, &body, |model, text| {
        let words = text.split_whitespace().count();
        let message = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": null, "stop_sequence": null,
            "usage": { "input_tokens": 5, "output_tokens": 1 },
        });
        let events = [
            json!({ "type": "message_start", "message": message }),
            json!({ "type": "content_block_start", "index": 0,
                    "content_block": { "type": "text", "text": "" } }),
            json!({ "type": "content_block_delta", "index": 0,
                    "delta": { "type": "text_delta", "text": text } }),
            json!({ "type": "content_block_stop", "index": 0 }),
            json!({ "type": "message_delta",
                    "delta": { "stop_reason": "end_turn", "stop_sequence": null },
                    "usage": { "input_tokens": 5, "output_tokens": words } }),
            json!({ "type": "message_stop" }),
        ];
        let event = |event: &Value| {
            format!(
                "event: {}\ndata: {event}\n\n",
                event["type"].as_str().unwrap_or_default()
            )
        };
        events.iter().map(event).collect()
    })
    .await
}

/// Each word is a token.
async fn count(body: Json<Value>) -> Json<Value> {
    let tokens = last_words(&body).split_whitespace().count();
    Json(json!({ "input_tokens": tokens }))
}

async fn completions(
    State(book): State<Arc<Book>>,
    headers: HeaderMap,
    body: Json<Value>,
) -> Response {
    answer(book, &headers, &body, |model, text| {
        let words = text.split_whitespace().count();
        let chunk = |choices: Value, usage: Value| {
            let chunk = json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1,
                "model": model, "choices": choices, "usage": usage,
            });
            format!("data: {chunk}\n\n")
        };
        let delta = |delta: Value, finish: Value| {
            json!([{ "index": 0, "delta": delta, "finish_reason": finish }])
        };
        [
            chunk(delta(json!({ "role": "assistant", "content": text }), Value::Null), Value::Null),
            chunk(delta(json!({}), json!("stop")), Value::Null),
            chunk(json!([]), json!({ "prompt_tokens": 5, "completion_tokens": words })),
            "data: [DONE]\n\n".to_owned(),
        ]
        .concat()
    })
    .await
}

async fn answer(
    book: Arc<Book>,
    headers: &HeaderMap,
    body: &Value,
    stream: impl Fn(&str, &str) -> String,
) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let key = text("x-api-key").or(bearer).unwrap_or_default().to_owned();
    let ask = Ask {
        key,
        prompt: last_words(body),
    };
    let under_way = UnderWay::begin(&book, &ask, body);
    let play = (book.play)(&ask);
    if let Play::Slowly(millis, _) = &play {
        rest(Duration::from_millis(*millis)).await;
    }
    // Over before the answer is out: what the client does next is another request.
    drop(under_way);
    match play {
        Play::Answer(text) | Play::Slowly(_, text) => {
            let model = body["model"].as_str().unwrap_or_default();
            let events = stream(model, &text);
            (
                [(header::CONTENT_TYPE, "text/event-stream")],
                Body::from(events),
            )
                .into_response()
        }
        Play::Throttle(seconds) => {
            let error = json!({ "error": { "type": "rate_limit_error", "message": "slow down" } });
            let retry_after = [(header::RETRY_AFTER, seconds.to_string())];
            (StatusCode::TOO_MANY_REQUESTS, retry_after, Json(error)).into_response()
        }
        Play::Refuse(status, code) => {
            // Providers quote what they refuse.
            let message = format!("{code}: the key was {} for {}", ask.key, ask.prompt);
            let error = json!({
                "type": "error",
                "error": { "type": code, "code": code, "message": message },
            });
            (StatusCode::from_u16(status).unwrap(), Json(error)).into_response()
        }
    }
}

/// The text that was said last. The CLI puts blocks of its own before it.
fn last_words(body: &Value) -> String {
    let content = &body["messages"]
        .as_array()
        .and_then(|all| all.last())
        .unwrap()["content"];
    let text = match content {
        Value::Array(blocks) => blocks.last().and_then(|block| block["text"].as_str()),
        other => other.as_str(),
    };
    text.unwrap_or_default().trim().to_owned()
}
