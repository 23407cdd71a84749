//! A provider on this machine that answers at once: chat completions, streamed or not, and the
//! Messages API, streamed.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};

/// It serves until it is dropped.
pub(crate) struct Upstream {
    /// Where it serves.
    pub(crate) address: SocketAddr,
    asked: Asked,
    _serving: JoinSet<()>,
}

/// The bodies of what the Messages API was asked.
type Asked = Arc<Mutex<Vec<Bytes>>>;

impl Upstream {
    pub(crate) fn start() -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let asked = Asked::default();
        let book = asked.clone();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream.set_nodelay(true));
                let book = book.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, book.clone()));
                    // A connection that is cut is the other side's affair.
                    drop(
                        http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            asked,
            _serving: serving,
        })
    }

    /// The bodies of what the Messages API was asked so far; they are forgotten here.
    pub(crate) fn take_asked(&self) -> Vec<Bytes> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

const STREAM: &str = "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Paris is the capital of France.\"},\"finish_reason\":null}]}\n\ndata: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":60,\"completion_tokens\":7,\"total_tokens\":67}}\n\ndata: [DONE]\n\n";

const WHOLE: &str = "{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Paris is the capital of France.\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":60,\"completion_tokens\":7,\"total_tokens\":67}}";

const MESSAGES: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"m\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":60,\"output_tokens\":1}}}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Paris is the capital of France.\"}}\n\nevent: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":7}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

async fn answer(
    request: Request<Incoming>,
    asked: Asked,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let is_messages = request.uri().path() == "/v1/messages";
    let body = request.into_body().collect().await?.to_bytes();
    let is_streamed = body
        .windows(b"\"stream\":true".len())
        .any(|window| window == b"\"stream\":true");
    let (kind, text) = match (is_messages, is_streamed) {
        (true, _) => ("text/event-stream", MESSAGES),
        (false, true) => ("text/event-stream", STREAM),
        (false, false) => ("application/json", WHOLE),
    };
    if is_messages {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(body);
    }
    let mut response = Response::new(Full::from(text));
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}
