//! State changes of all jobs, as they come.

use std::time::Duration;

use reqwest::{Method, Response};
use sluice_shared::{api::JobChanges, domain::State};

use super::{Client, ClientError};

/// The server says something this often, news or not; twice that and more is a lost connection.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a stream may last before it is opened again.
const LASTS: Duration = Duration::from_secs(24 * 3600);

/// Longest line of the stream; 200 changes are far below it.
const MOST_LINE: usize = 1024 * 1024;

/// An open stream of changes.
#[derive(Debug)]
pub struct Changes<'a> {
    client: &'a Client,
    response: Response,
    buffer: Vec<u8>,
}

impl Client {
    /// Watches all jobs from now on: their coming into these states.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn changes(&self, states: &[State]) -> Result<Changes<'_>, ClientError> {
        let names: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let request = self.request(Method::GET, "api/events").timeout(LASTS);
        let response = self
            .send(request.query(&[("state", names.join(","))]))
            .await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        Ok(Changes {
            client: self,
            response,
            buffer: Vec::new(),
        })
    }
}

impl Changes<'_> {
    /// The next changes; `None` when the stream has ended or broken off: open another.
    ///
    /// # Errors
    /// When what comes is nothing that Sluice sends.
    pub async fn next(&mut self) -> Result<Option<JobChanges>, ClientError> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                // What the server tells is JSON on one line; all else names or keeps alive.
                if let Some(data) = line.strip_prefix(b"data:") {
                    let changes = serde_json::from_slice(data);
                    return changes.map(Some).map_err(|error| self.strange(&error));
                }
            }
            if self.buffer.len() > MOST_LINE {
                return Err(self.strange(&"a line without end"));
            }
            match tokio::time::timeout(SILENCE, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => self.buffer.extend_from_slice(&chunk),
                Ok(Ok(None) | Err(_)) | Err(_) => return Ok(None),
            }
        }
    }

    fn strange(&self, why: &impl std::fmt::Display) -> ClientError {
        ClientError::NotSluice {
            url: self.client.url.clone(),
            status: self.response.status().as_u16(),
            excerpt: why.to_string(),
        }
    }
}
