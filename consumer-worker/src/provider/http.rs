//! What the two HTTP providers share: one account's endpoint, and the events of an answer.

use std::{collections::VecDeque, error::Error as _, time::Duration};

use reqwest::{
    Client, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
};
use secrecy::{ExposeSecret, SecretString};
use sluice_shared::domain::Outcome;

use super::{
    Account, BuildError, Check,
    answer::too_large,
    api_error::ApiError,
    sse::{Decoder, Event},
};

/// Of a body that is no stream, no more than this is read.
const BODY_BYTES: usize = 64 * 1024;
/// What an event may have beyond its text: the JSON around it.
const EVENT_OVERHEAD: usize = 256 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// One account's endpoint of an HTTP API.
#[derive(Debug)]
pub(super) struct Endpoint {
    client: Client,
    root: Url,
    headers: HeaderMap,
    max_output_bytes: usize,
}

impl Endpoint {
    /// The endpoint below `base`, which may or may not name the API's version.
    pub(super) fn build(
        account: &Account<'_>,
        base: Url,
        headers: HeaderMap,
    ) -> Result<Self, BuildError> {
        // reqwest panics when nobody has chosen, and a worker without HTTP accounts never does.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        let client = Client::builder()
            // One connection a prompt: over HTTP/2 all prompts of an account would share one
            // connection, its flow control and its limit of streams, for minutes each.
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            // A provider may be silent for long while the model thinks, so that only the
            // connection itself can tell whether anyone is still there.
            .tcp_keepalive(Duration::from_secs(30))
            .tcp_keepalive_interval(Duration::from_secs(10))
            .tcp_keepalive_retries(3)
            .pool_idle_timeout(Duration::from_secs(60))
            // A redirect would take the key, the prompt or both to another place.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                account.error("base_url", format!("no HTTP client for it: {}", chain(&error)))
            })?;
        let root = versioned(base);
        Ok(Self {
            client,
            root,
            headers,
            max_output_bytes: account.max_output_bytes,
        })
    }

    /// Posts `body` to `path` and gives the answer's events; an error when there is no connection.
    pub(super) async fn post(
        &self,
        path: &[&str],
        body: Vec<u8>,
    ) -> Result<Result<Events, Refusal>, Outcome> {
        let response = self
            .send(path, body)
            .await
            .map_err(|error| Outcome::failed("connection", chain(&error.without_url())))?;
        if response.status() == StatusCode::OK {
            Ok(Ok(Events::new(response, self.max_output_bytes)))
        } else {
            Ok(Err(Refusal::read(response).await))
        }
    }

    /// Posts `body` to `path` and gives the answer, which is one JSON document.
    pub(super) async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        path: &[&str],
        body: Vec<u8>,
    ) -> Result<Result<T, Refusal>, Outcome> {
        let failed =
            |error: reqwest::Error| Outcome::failed("connection", chain(&error.without_url()));
        let mut response = self.send(path, body).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Ok(Err(Refusal::read(response).await));
        }
        let mut body = Vec::new();
        while body.len() < BODY_BYTES
            && let Some(chunk) = response.chunk().await.map_err(failed)?
        {
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body)
            .map(Ok)
            .map_err(|error| Outcome::failed("bad_response", error.to_string()))
    }

    async fn send(&self, path: &[&str], body: Vec<u8>) -> Result<Response, reqwest::Error> {
        self.client
            .post(self.url(path))
            .headers(self.headers.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body)
            .send()
            .await
    }

    /// Asks for the list of models, which costs nothing, to see whether the key is accepted.
    pub(super) async fn check(&self, key_source: Option<&str>) -> Check {
        let host = self.root.host_str().unwrap_or("the server").to_owned();
        let asked = self
            .client
            .get(self.url(&["models"]))
            .headers(self.headers.clone())
            .timeout(CHECK_TIMEOUT)
            .send()
            .await;
        let response = match asked {
            Ok(response) => response,
            Err(error) => {
                return Check::problem(
                    format!("{host} does not answer: {}", chain(&error.without_url())),
                    "see that base_url is right and reachable from this machine",
                );
            }
        };
        let status = response.status();
        match status.as_u16() {
            200..=299 => Check::Ok(match key_source {
                Some(source) => format!("{host} accepts {source}"),
                None => format!("{host} answers; no key is configured"),
            }),
            401 | 403 => {
                let refusal = Refusal::read(response).await;
                let words = refusal.error.detail();
                match key_source {
                    Some(source) => Check::problem(
                        format!("{host} refuses {source}: {words}"),
                        "put a valid key there",
                    ),
                    None => Check::problem(
                        format!("{host} asks for a key: {words}"),
                        "set api_key_env to the name of a variable that holds one",
                    ),
                }
            }
            // Servers of one's own often have no such list.
            404 | 405 | 501 => Check::Ok(match key_source {
                Some(source) => format!("{host} answers, but {source} could not be tried"),
                None => format!("{host} answers; no key is configured"),
            }),
            300..=399 => {
                let refusal = Refusal::read(response).await;
                Check::problem(
                    format!("{host} says {}", refusal.error.detail()),
                    "mend base_url",
                )
            }
            _ => {
                let refusal = Refusal::read(response).await;
                Check::problem(
                    format!("{host} says {}", refusal.error.detail()),
                    "try again later, or see the provider's status page",
                )
            }
        }
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.root.clone();
        // An http URL always has a path; the configuration takes no other.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }
}

/// `secret` as the value of a header, marked so that no debug output shows it.
pub(super) fn secret_header(prefix: &str, secret: &SecretString) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("{prefix}{}", secret.expose_secret())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `base` with `/v1` added when no part of its path looks like a version: `https://host`,
/// `https://host/v1` and `https://host/v1beta/openai/` all mean what they seem to.
fn versioned(mut base: Url) -> Url {
    let is_version = |part: &str| {
        let mut chars = part.chars();
        chars.next() == Some('v') && chars.next().is_some_and(|c| c.is_ascii_digit())
    };
    let named = base
        .path_segments()
        .is_some_and(|mut parts| parts.any(is_version));
    if !named && let Ok(mut segments) = base.path_segments_mut() {
        segments.pop_if_empty().push("v1");
    }
    base
}

/// An error with its causes: reqwest's own words end before they say why.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) headers: HeaderMap,
    pub(super) error: ApiError,
}

impl Refusal {
    async fn read(mut response: Response) -> Self {
        let status = response.status();
        let headers = response.headers().clone();
        let mut body = Vec::new();
        while body.len() < BODY_BYTES
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        body.truncate(BODY_BYTES);
        let mut error = ApiError::from_answer(status, &headers, &String::from_utf8_lossy(&body));
        // Not followed, for it would take the key along.
        if status.is_redirection()
            && let Some(place) = headers.get(LOCATION).and_then(|place| place.to_str().ok())
        {
            error.message = format!("redirects to {place}, which base_url should name");
        }
        Self { headers, error }
    }
}

/// The events of a streamed answer.
#[derive(Debug)]
pub(super) struct Events {
    response: Response,
    decoder: Decoder,
    ready: VecDeque<Event>,
    /// Whether there has been any event at all.
    any: bool,
    max_output_bytes: usize,
}

impl Events {
    fn new(response: Response, max_output_bytes: usize) -> Self {
        Self {
            response,
            decoder: Decoder::new(max_output_bytes.saturating_add(EVENT_OVERHEAD)),
            ready: VecDeque::new(),
            any: false,
            max_output_bytes,
        }
    }

    /// The headers of the answer.
    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next event, or what a stream that ends before it is whole comes to: a cut stream is
    /// never taken for an answer.
    pub(super) async fn next(&mut self) -> Result<Event, Outcome> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.any = true;
                return Ok(event);
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self
                    .decoder
                    .feed(&chunk, &mut self.ready)
                    .map_err(|_| too_large(self.max_output_bytes))?,
                Ok(None) if self.any => {
                    return Err(Outcome::failed(
                        "stream_cut",
                        "the stream ended before its end",
                    ));
                }
                Ok(None) => {
                    let kind = self.response.headers().get(CONTENT_TYPE);
                    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or("none");
                    return Err(Outcome::failed(
                        "bad_response",
                        format!("HTTP 200 without a stream of events (content type: {kind})"),
                    ));
                }
                Err(error) => {
                    return Err(Outcome::failed("stream_cut", chain(&error.without_url())));
                }
            }
        }
    }
}

/// `event`'s JSON as a `T`.
pub(super) fn parse<T: serde::de::DeserializeOwned>(event: &Event) -> Result<T, Outcome> {
    serde_json::from_str(&event.data).map_err(|error| {
        let start: String = event.data.chars().take(200).collect();
        Outcome::failed(
            "bad_response",
            format!("an event cannot be read ({error}): {start}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_added_where_none_is_named() {
        let mut table = String::new();
        for base in [
            "http://localhost:11434",
            "http://localhost:11434/",
            "https://host/v1",
            "https://host/v1/",
            "https://host/anthropic",
            "https://host/openai/v1",
            "https://host/v1beta/openai/",
            "https://host/api/paas/v4",
            "https://host/vision?key=1",
        ] {
            table += &format!("{base} -> {}\n", versioned(base.parse().unwrap()));
        }
        insta::assert_snapshot!(table, @r#"
        http://localhost:11434 -> http://localhost:11434/v1
        http://localhost:11434/ -> http://localhost:11434/v1
        https://host/v1 -> https://host/v1
        https://host/v1/ -> https://host/v1/
        https://host/anthropic -> https://host/anthropic/v1
        https://host/openai/v1 -> https://host/openai/v1
        https://host/v1beta/openai/ -> https://host/v1beta/openai/
        https://host/api/paas/v4 -> https://host/api/paas/v4
        https://host/vision?key=1 -> https://host/vision/v1?key=1
        "#);
    }
}
