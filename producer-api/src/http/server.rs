//! Connections: how they are accepted, how long a client may take, and how they end.
//!
//! It is axum's own loop with what that one leaves out: a client that does not send its request
//! or does not take its answer is given up, and one that is refused in the middle of its body
//! can still read why.

use std::{future::poll_fn, io, time::Duration};

use axum::{
    Router,
    http::{HeaderValue, Request, header},
    response::IntoResponse,
};
use futures::TryFutureExt;
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use super::{
    problem::{ApiError, Code},
    session::Peer,
};

/// How long requests that are under way may take at shutdown.
const DRAIN: Duration = Duration::from_secs(20);

/// How long to rest when no connection can be accepted, for want of file descriptors.
const REST: Duration = Duration::from_millis(500);

/// A body up to this size has come whole by the time it is refused.
const SHORT: u64 = 8 * 1024;

/// How long a client that is still sending is listened to after its answer, and how much.
const LINGER: Duration = Duration::from_secs(5);
const MOST_LINGERING: u64 = 16 * 1024 * 1024;

/// Serves until `shutdown`, then until the requests that are under way have been answered. A
/// client has `patience` to send the head of a request, and to take what it is sent.
pub(super) async fn run(
    listener: TcpListener,
    router: Router,
    patience: Duration,
    shutdown: CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience);
    let connections = TaskTracker::new();
    let abandon = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if is_of_one_client(&error) => continue,
            Err(error) => {
                tracing::error!(%error, "connections cannot be accepted");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        if let Err(error) = prepare(&stream, patience) {
            tracing::debug!(%error, "a connection was gone at once");
            continue;
        }
        let connection = serve(stream, http.clone(), router.clone(), shutdown.clone());
        let abandoned = abandon.clone().cancelled_owned();
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = abandoned => {}
            }
        });
    }
    drop((listener, router));
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "connections are cut at shutdown"
        );
        abandon.cancel();
        connections.wait().await;
    }
}

/// Answers go out at once, and not for ever: a client that takes nothing of what it is sent is
/// cut off by the kernel.
fn prepare(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(patience))?;
    #[cfg(not(target_os = "linux"))]
    let _ = patience;
    Ok(())
}

/// Errors of `accept` that say nothing about the next connection.
fn is_of_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// Serves one connection to its end.
async fn serve(
    stream: TcpStream,
    http: http1::Builder,
    router: Router,
    shutdown: CancellationToken,
) {
    let peer = stream.peer_addr().map(|address| Peer(address.ip()));
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Ok(peer) = peer.as_ref() {
            request.extensions_mut().insert(*peer);
        }
        let is_long = request
            .body()
            .size_hint()
            .upper()
            .is_none_or(|size| size > SHORT);
        router.clone().call(request).map_ok(move |mut answer| {
            // A refusal may come before the whole body. Then hyper ends the connection, and the
            // client must know, or it uses it again.
            if is_long && !answer.status().is_success() {
                let headers = answer.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        })
    });
    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    let served = tokio::select! {
        served = poll_fn(|context| connection.poll_without_shutdown(context)) => served,
        () = shutdown.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|context| connection.poll_without_shutdown(context)).await
        }
    };
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    match served {
        // At shutdown what is left is idle, or has said all that it had to say.
        Ok(()) if shutdown.is_cancelled() => {}
        Ok(()) => linger(stream).await,
        // A connection that is closed while idle owes nobody an explanation.
        Err(error) if error.is_timeout() && !parts.read_buf.is_empty() => {
            say_timeout(&mut stream).await;
            linger(stream).await;
        }
        Err(error) => tracing::debug!(%error, "a connection failed"),
    }
}

/// hyper has no answer for a head that does not come.
async fn say_timeout(stream: &mut TcpStream) {
    let detail = "the head of the request did not come whole in time";
    let answer = ApiError::new(Code::RequestTimeout, detail).into_response();
    let (parts, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX)
        .await
        .unwrap_or_default();
    let mut text = format!(
        "HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: {}\r\n",
        parts.status,
        body.len()
    );
    for (name, value) in &parts.headers {
        text += &format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text += "\r\n";
    let answer = [text.as_bytes(), &body].concat();
    if let Err(error) = stream.write_all(&answer).await {
        tracing::debug!(%error, "a slow client was gone");
    }
}

/// Closes a connection in a way that lets the client read its answer. To close with unread bytes
/// in the way would reset it, and a client that was refused in the middle of its body would learn
/// nothing (RFC 9112, section 9.6).
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut rest = stream.take(MOST_LINGERING);
    let mut sink = tokio::io::sink();
    drop(tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut sink)).await);
}
