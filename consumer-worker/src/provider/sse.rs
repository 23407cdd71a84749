//! Server-sent events from bytes as they come.
//!
//! Our own few lines, because `eventsource-stream` 0.2 panics on a stream that begins with a
//! byte-order mark, scans an event again for every chunk of it, and bounds none.

use std::collections::VecDeque;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The `event:` field; empty when there was none.
    pub(super) name: String,
    /// The `data:` fields, joined by line breaks.
    pub(super) data: String,
}

/// An event longer than its bound.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Turns chunks of bytes into events. Lines end in LF or CRLF; a lone CR, which the standard
/// allows too and no provider sends, is not a line's end.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The line that has begun and not ended.
    line: Vec<u8>,
    event: Event,
    /// Whether a first line has been seen, before which a byte-order mark may stand.
    started: bool,
    /// Bytes that one event may have.
    limit: usize,
}

impl Decoder {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            line: Vec::new(),
            event: Event::default(),
            started: false,
            limit,
        }
    }

    /// Takes in `chunk` and appends the events that it completes to `events`.
    pub(super) fn feed(
        &mut self,
        chunk: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), TooLong> {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            self.room_for(line)?;
            if self.line.is_empty() {
                self.end_line(line, events);
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.end_line(&whole, events);
            }
        }
        self.room_for(rest)?;
        self.line.extend_from_slice(rest);
        Ok(())
    }

    fn room_for(&self, more: &[u8]) -> Result<(), TooLong> {
        let held = self.line.len().saturating_add(self.event.data.len());
        if held.saturating_add(more.len()) > self.limit {
            Err(TooLong)
        } else {
            Ok(())
        }
    }

    fn end_line(&mut self, line: &[u8], events: &mut VecDeque<Event>) {
        let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        let mut text = text.as_ref();
        if !std::mem::replace(&mut self.started, true) {
            text = text.strip_prefix('\u{feff}').unwrap_or(text);
        }
        if text.is_empty() {
            let event = std::mem::take(&mut self.event);
            if !event.data.is_empty() {
                events.push_back(event);
            }
            return;
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if !self.event.data.is_empty() {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // A comment has an empty field name; ids and retry times are of no use here.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event {
            name: name.into(),
            data: data.into(),
        }
    }

    fn decode(chunks: &[&[u8]]) -> Vec<Event> {
        let mut decoder = Decoder::new(1000);
        let mut events = VecDeque::new();
        for chunk in chunks {
            decoder.feed(chunk, &mut events).unwrap();
        }
        events.into()
    }

    #[test]
    fn fields_comments_and_line_ends_are_read_as_the_standard_says() {
        let text = "\u{feff}event: a\r\ndata: 1\r\ndata:2\r\n\r\n: comment\nid: 7\n\ndata\n\ndata: x: y\n\n";
        let found = decode(&[text.as_bytes()]);
        assert_eq!(found, [event("a", "1\n2"), event("", "x: y")]);
    }

    #[test]
    fn an_event_that_never_ended_is_none() {
        assert_eq!(decode(&[b"data: 1\n\ndata: 2\n"]), [event("", "1")]);
    }

    #[test]
    fn an_event_is_bounded_in_one_line_and_in_many() {
        let mut events = VecDeque::new();
        assert_eq!(
            Decoder::new(10).feed(b"data: 123456", &mut events),
            Err(TooLong)
        );
        assert_eq!(
            Decoder::new(10).feed(b"data: 123456\n", &mut events),
            Err(TooLong)
        );
        let mut decoder = Decoder::new(20);
        let outcome = (0..10).try_for_each(|_| decoder.feed(b"data: 1234\n", &mut events));
        assert_eq!(outcome, Err(TooLong));
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(cuts in proptest::collection::vec(0usize..60, 0..8)) {
            let text = "\u{feff}event: grüße\r\ndata: é1\n\n:x\ndata: 2\ndata: 3\n\n".as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                chunks.push(&text[from..cut]);
                from = cut;
            }
            prop_assert_eq!(decode(&chunks), decode(&[text]));
        }

        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(&[&bytes]);
        }
    }
}
