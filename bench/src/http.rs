//! An HTTP client that costs little, since it shares the machine with what it measures: one
//! keep-alive connection each, driven by the task that waits for the answer, bodies made ahead.

use std::{net::SocketAddr, pin::Pin};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, StatusCode, Uri,
    client::conn::http1::{self, Connection, SendRequest},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// Where Sluice serves, and the key to it.
#[derive(Clone)]
pub(crate) struct Target {
    /// Its address.
    pub(crate) address: SocketAddr,
    /// An API key.
    pub(crate) key: String,
}

impl Target {
    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Client> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Client {
            sender,
            connection: Box::pin(connection),
            host: HeaderValue::from_str(&self.address.to_string())?,
            authorization: HeaderValue::from_str(&format!("Bearer {}", self.key))?,
        })
    }
}

/// One connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    connection: Pin<Box<Connection<TokioIo<TcpStream>, Full<Bytes>>>>,
    host: HeaderValue,
    authorization: HeaderValue,
}

impl Client {
    /// Asks, and returns the answer whatever its status.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        uri: Uri,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, self.host.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(body))?;
        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            Ok((status, answer.into_body().collect().await?.to_bytes()))
        };
        tokio::select! {
            biased;
            answer = exchange => answer,
            end = &mut self.connection => {
                end?;
                bail!("the server closed the connection");
            }
        }
    }

    /// Submits a body made ahead; returns the receipts as they came.
    pub(crate) async fn submit(&mut self, body: Bytes) -> Result<Bytes> {
        let (status, answer) = self
            .send(Method::POST, Uri::from_static("/api/jobs"), body)
            .await?;
        ensure!(
            status == StatusCode::ACCEPTED,
            "POST /api/jobs: {status} {}",
            text(&answer)
        );
        Ok(answer)
    }

    /// Gets what is at `path`, as text.
    pub(crate) async fn get_text(&mut self, path: &str) -> Result<String> {
        let uri = path.parse().with_context(|| format!("{path} is no path"))?;
        let (status, answer) = self.send(Method::GET, uri, Bytes::new()).await?;
        ensure!(
            status == StatusCode::OK,
            "GET {path}: {status} {}",
            text(&answer)
        );
        Ok(text(&answer))
    }

    /// Gets what is at `path`.
    pub(crate) async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T> {
        let answer = self.get_text(path).await?;
        serde_json::from_str(&answer).with_context(|| format!("GET {path} answered {answer}"))
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}
