//! Batches over HTTP: an upload from a file, and results that are read as they come.

use std::{
    fs::File,
    io::{self, Seek},
};

use reqwest::{Body, Method, Response, header::CONTENT_TYPE};
use sluice_shared::{
    api::{BatchPage, BatchView},
    domain::BatchId,
};
use uuid::Uuid;

use super::{
    Client, ClientError, POLL, SUBMIT_TRIES, excerpt, quoted,
    sse::{LASTS, SILENCE},
};

/// Longest line of results: more than a worker could be told to take.
const MOST_LINE: usize = 256 * 1024 * 1024;

/// What of a batch's results is there now, line by line.
#[derive(Debug)]
pub struct Results<'a> {
    client: &'a Client,
    response: Response,
    buffer: Vec<u8>,
    /// Bytes of the buffer in which there is no end of a line.
    searched: usize,
    ended: bool,
}

impl Client {
    /// Submits a file of jobs as one batch, and gives it when all of it is on disk there. It is
    /// sent again when it may have been lost on its way, which makes no second batch; what is no
    /// file on a disk is sent once.
    ///
    /// # Errors
    /// When the file cannot be read again, or the API says no or cannot be asked.
    pub async fn submit_batch(
        &self,
        mut file: File,
        name: Option<&str>,
        partial: bool,
    ) -> Result<BatchView, ClientError> {
        let unreadable = |error: io::Error| ClientError::Setup(format!("the file: {error}"));
        let is_file = file.metadata().map_err(unreadable)?.is_file();
        let key = quoted(&format!("cli-{}", Uuid::now_v7()))?;
        let mut tries = 1;
        loop {
            let body = file.try_clone().map_err(unreadable)?;
            let mut request = self
                .request(Method::POST, "api/batches")
                .timeout(LASTS)
                .header(CONTENT_TYPE, "application/jsonl")
                .header("idempotency-key", &key)
                .body(Body::from(tokio::fs::File::from_std(body)));
            if let Some(name) = name {
                request = request.query(&[("name", name)]);
            }
            if partial {
                request = request.query(&[("partial", "true")]);
            }
            match self.answer(request).await {
                Err(error) if is_file && tries < SUBMIT_TRIES && may_be_lost(&error) => {
                    file.rewind().map_err(unreadable)?;
                    tokio::time::sleep(error.pause(tries)).await;
                    tries += 1;
                }
                batch => return batch,
            }
        }
    }

    /// A page of batches, newest first.
    ///
    /// # Errors
    /// When the API says no, or cannot be asked.
    pub async fn batches(
        &self,
        client: Option<&str>,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<BatchPage, ClientError> {
        let limit = limit.to_string();
        let asked = [
            ("client", client),
            ("limit", Some(limit.as_str())),
            ("cursor", cursor),
        ];
        let asked = asked.map(|(name, value)| value.map(|value| (name, value)));
        let pairs: Vec<_> = asked.into_iter().flatten().collect();
        self.answer(self.request(Method::GET, "api/batches").query(&pairs))
            .await
    }

    /// A batch.
    ///
    /// # Errors
    /// When there is no such batch, or the API cannot be asked.
    pub async fn batch(&self, id: BatchId) -> Result<BatchView, ClientError> {
        self.answer(self.request(Method::GET, &format!("api/batches/{id}")))
            .await
    }

    /// Cancels a batch.
    ///
    /// # Errors
    /// When there is no such batch, it has ended, or the API cannot be asked.
    pub async fn cancel_batch(&self, id: BatchId) -> Result<BatchView, ClientError> {
        self.answer(self.request(Method::POST, &format!("api/batches/{id}/cancel")))
            .await
    }

    /// The results of a batch behind this line of the upload. With `wait` those that come soon, too.
    ///
    /// # Errors
    /// When there is no such batch, or the API cannot be asked.
    pub async fn results(
        &self,
        id: BatchId,
        after: u64,
        wait: bool,
    ) -> Result<Results<'_>, ClientError> {
        let request = self.request(Method::GET, &format!("api/batches/{id}/results"));
        let mut request = request.timeout(LASTS).query(&[("after", after)]);
        if wait {
            let wait = humantime::format_duration(POLL).to_string();
            request = request.query(&[("wait", wait)]);
        }
        let response = self.begin(request).await?;
        let state = response.headers().get("sluice-batch-state");
        let ended = state.is_some_and(|state| state == "ended");
        Ok(Results {
            client: self,
            response,
            buffer: Vec::new(),
            searched: 0,
            ended,
        })
    }
}

/// Whether an upload may have come to nothing for no fault of its own. What is refused for too much
/// is too much in a minute, too.
fn may_be_lost(error: &ClientError) -> bool {
    error.is_transient() && !error.is_refused_connection() && error.status() != Some(429)
}

impl Results<'_> {
    /// Whether these are all that there will ever be.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.ended
    }

    /// The next line, with its end; `None` when there are no more now.
    ///
    /// # Errors
    /// When the connection is lost, or what comes are no lines.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            let rest = &self.buffer[self.searched..];
            if let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.drain(..=self.searched + at).collect();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > MOST_LINE {
                return Err(self.strange("a line without end"));
            }
            let chunk = tokio::time::timeout(SILENCE, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| self.client.broke_off("nothing came any more"))?;
            match chunk.map_err(|error| self.client.lost(&error))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.client.broke_off("a line broke off")),
            }
        }
    }

    /// For what comes that no Sluice sends.
    #[must_use]
    pub fn strange(&self, why: &str) -> ClientError {
        ClientError::NotSluice {
            url: self.client.url.clone(),
            status: self.response.status().as_u16(),
            excerpt: excerpt(why.as_bytes()),
        }
    }
}
