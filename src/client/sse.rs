//! Server-sent events, as they come.

use std::time::Duration;

use reqwest::{RequestBuilder, Response};

use super::{Client, ClientError, REQUEST_TIMEOUT};

/// The server says something this often, news or not; twice that and more is a lost connection.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// How long an answer that is read as it comes may last; then it is opened again.
pub(super) const LASTS: Duration = Duration::from_secs(24 * 3600);

/// Longest event: a job with the longest answer that a worker could be told to take is below it.
const MOST_BYTES: usize = 256 * 1024 * 1024;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    /// Where to go on behind it, if it says so.
    pub(super) id: Option<String>,
    pub(super) data: Vec<u8>,
}

/// An open stream of events.
#[derive(Debug)]
pub(super) struct Events<'a> {
    client: &'a Client,
    response: Response,
    parser: Parser,
}

impl Client {
    /// Opens a stream, behind the event with the id `last` if there is one.
    pub(super) async fn events(
        &self,
        request: RequestBuilder,
        last: Option<&str>,
    ) -> Result<Events<'_>, ClientError> {
        let mut request = request.timeout(LASTS);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = self.begin(request).await?;
        Ok(Events {
            client: self,
            response,
            parser: Parser::default(),
        })
    }

    /// Sends a request whose answer may last, and gives the answer when it has begun and is good.
    pub(super) async fn begin(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = tokio::time::timeout(REQUEST_TIMEOUT, self.send(request));
        let response = response
            .await
            .map_err(|_| self.broke_off("no answer came"))??;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    pub(super) fn broke_off(&self, cause: &str) -> ClientError {
        ClientError::Lost {
            url: self.url.clone(),
            cause: cause.into(),
        }
    }
}

impl Events<'_> {
    /// The next event; `None` when the stream has ended or broken off: open another.
    ///
    /// # Errors
    /// When what comes is nothing that Sluice sends.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some(event));
            }
            if self.parser.len() > MOST_BYTES {
                return Err(self.strange(&"an event without end"));
            }
            match tokio::time::timeout(SILENCE, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => self.parser.push(&chunk),
                Ok(Ok(None) | Err(_)) | Err(_) => return Ok(None),
            }
        }
    }

    pub(super) fn strange(&self, why: &impl std::fmt::Display) -> ClientError {
        ClientError::NotSluice {
            url: self.client.url.clone(),
            status: self.response.status().as_u16(),
            excerpt: why.to_string(),
        }
    }
}

/// Bytes come in pieces of any size, events go out whole. Pure.
#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    /// Bytes of the buffer in which there is no end of a line.
    searched: usize,
    /// What of the next event has come; its data when there was any.
    draft: Event,
    has_data: bool,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What it keeps, in bytes.
    fn len(&self) -> usize {
        self.buffer.len() + self.draft.data.len()
    }

    /// The next event that is whole. One that broke off is none.
    fn next(&mut self) -> Option<Event> {
        loop {
            let rest = &self.buffer[self.searched..];
            let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let mut line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
            self.searched = 0;
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if !line.is_empty() {
                self.field(&line);
                continue;
            }
            let event = std::mem::take(&mut self.draft);
            // What has no data only keeps alive.
            if std::mem::take(&mut self.has_data) {
                return Some(event);
            }
        }
    }

    fn field(&mut self, line: &[u8]) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[..0]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let text = || String::from_utf8_lossy(value).into_owned();
        match name {
            b"event" => self.draft.name = text(),
            b"id" => self.draft.id = Some(text()),
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.draft.data.push(b'\n');
                }
                self.draft.data.extend_from_slice(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece);
            while let Some(event) = parser.next() {
                events.push(event);
            }
        }
        events
    }

    fn event(name: &str, id: Option<&str>, data: &str) -> Event {
        Event {
            name: name.into(),
            id: id.map(str::to_owned),
            data: data.into(),
        }
    }

    const STREAM: &[u8] =
        b": hello\n\nevent: text\nid: 5-0\ndata: {\"a\":1}\n\n:\n\ndata:one\r\ndata: two\r\n\r\nevent: lost\ndata: x\n";

    #[test]
    fn events_are_told_apart_from_what_keeps_alive() {
        assert_eq!(
            parse(&[STREAM]),
            [
                event("text", Some("5-0"), "{\"a\":1}"),
                event("", None, "one\ntwo")
            ]
        );
        assert_eq!(
            parse(&[b"event: none\n\n", b"data\n\n"]),
            [event("", None, "")]
        );
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_how_the_bytes_come(
            mut cuts in proptest::collection::vec(0..STREAM.len(), 0..8),
        ) {
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &STREAM[cut[0]..cut[1]]).collect();
            prop_assert_eq!(parse(&pieces), parse(&[STREAM]));
        }
    }
}
