//! The elements of `{"requests": […]}` as lines, as the bytes come. Pure. A body of this API is
//! one JSON document, however large; no more than one of its elements is ever kept.

/// What cannot be `{"requests": […]}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoRequests(&'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before `[`.
    Head,
    /// Between elements.
    Between,
    /// In an element with so many brackets open.
    Element(u32),
    /// In a text of an element, perhaps behind a backslash.
    Text { depth: u32, escaped: bool },
    /// Behind `]`.
    Tail,
}

/// Turns a body into lines, one an element.
#[derive(Debug)]
pub(super) struct Elements {
    at: At,
    head: Vec<u8>,
    tail: Vec<u8>,
}

/// Bytes around the array, at most.
const MOST_AROUND: usize = 1_024;

impl Elements {
    pub(super) fn new() -> Self {
        Self {
            at: At::Head,
            head: Vec::new(),
            tail: Vec::new(),
        }
    }

    /// Takes more bytes, and adds what they are as lines to `lines`.
    pub(super) fn push(&mut self, bytes: &[u8], lines: &mut Vec<u8>) -> Result<(), NoRequests> {
        for byte in bytes.iter().copied() {
            self.at = match (self.at, byte) {
                (At::Head, b'[') => {
                    let head: Vec<u8> = self
                        .head
                        .iter()
                        .copied()
                        .filter(|b| !b.is_ascii_whitespace())
                        .collect();
                    if head != b"{\"requests\":" {
                        return Err(NoRequests(
                            "the body must be an object with `requests` alone",
                        ));
                    }
                    At::Between
                }
                (At::Head, _) => {
                    self.head.push(byte);
                    if self.head.len() > MOST_AROUND {
                        return Err(NoRequests(
                            "the body must be an object with `requests` alone",
                        ));
                    }
                    At::Head
                }
                (At::Between, b'{') => {
                    lines.push(byte);
                    At::Element(1)
                }
                (At::Between, b']') => At::Tail,
                (At::Between, b',' | b' ' | b'\n' | b'\r' | b'\t') => At::Between,
                (At::Between, _) => {
                    return Err(NoRequests("each of `requests` must be an object"));
                }
                (At::Element(depth), _) => {
                    // Between its tokens, an end of a line is a blank like any other.
                    lines.push(if byte == b'\n' || byte == b'\r' {
                        b' '
                    } else {
                        byte
                    });
                    match byte {
                        b'"' => At::Text {
                            depth,
                            escaped: false,
                        },
                        b'{' | b'[' => At::Element(depth.saturating_add(1)),
                        b'}' | b']' if depth == 1 => {
                            lines.push(b'\n');
                            At::Between
                        }
                        b'}' | b']' => At::Element(depth - 1),
                        _ => At::Element(depth),
                    }
                }
                (At::Text { depth, escaped }, _) => {
                    // One in a text is a mistake that the parser of the line must see.
                    lines.push(if byte == b'\n' { 0 } else { byte });
                    match byte {
                        b'"' if !escaped => At::Element(depth),
                        b'\\' => At::Text {
                            depth,
                            escaped: !escaped,
                        },
                        _ => At::Text {
                            depth,
                            escaped: false,
                        },
                    }
                }
                (At::Tail, _) => {
                    self.tail.push(byte);
                    if self.tail.len() > MOST_AROUND {
                        return Err(NoRequests(
                            "the body must be an object with `requests` alone",
                        ));
                    }
                    At::Tail
                }
            };
        }
        Ok(())
    }

    /// The body has ended.
    pub(super) fn finish(&self) -> Result<(), NoRequests> {
        let tail: Vec<u8> = self
            .tail
            .iter()
            .copied()
            .filter(|b| !b.is_ascii_whitespace())
            .collect();
        match self.at {
            At::Tail if tail == b"}" => Ok(()),
            At::Tail => Err(NoRequests(
                "the body must be an object with `requests` alone",
            )),
            At::Head => Err(NoRequests("the body has no array `requests`")),
            _ => Err(NoRequests("the body ends in the middle")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Result<Vec<Value>, NoRequests> {
        let mut elements = Elements::new();
        let mut lines = Vec::new();
        for piece in pieces {
            elements.push(piece, &mut lines)?;
        }
        elements.finish()?;
        let text = String::from_utf8(lines).unwrap();
        Ok(text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or(Value::Null))
            .collect())
    }

    #[test]
    fn elements_are_lines() {
        let body =
            b"{ \"requests\" : [\n {\"a\": \"]}\\\"{\\\\\"},\r\n{\"b\":\n[{}, {\"c\": 1}]} ] }\n";
        let expected = [json!({"a": "]}\"{\\"}), json!({"b": [{}, {"c": 1}]})];
        assert_eq!(lines(&[body]).unwrap(), expected);
        assert_eq!(lines(&[b"{\"requests\":[]}"]).unwrap(), Vec::<Value>::new());
    }

    #[test]
    fn what_is_no_body_is_told() {
        for body in [
            "",
            "{}",
            "[]",
            "[{}]",
            "{\"request\": [{}]}",
            "{\"requests\": [1]}",
            "{\"requests\": [{}",
            "{\"requests\": [{}]",
            "{\"requests\": [{}], \"x\": 1}",
            "{\"x\": 1, \"requests\": [{}]}",
        ] {
            assert!(lines(&[body.as_bytes()]).is_err(), "{body}");
        }
        // The parser of the line finds these.
        assert_eq!(
            lines(&[b"{\"requests\": [{\"a\": \"x\ny\"}]}"]).unwrap(),
            [Value::Null]
        );
        assert_eq!(lines(&[b"{\"requests\": [{]]}"]).unwrap(), [Value::Null]);
    }

    proptest! {
        #[test]
        fn any_elements_come_through_however_they_are_cut(
            texts in proptest::collection::vec("\\PC{0,12}", 0..6), cut in 0_usize..200,
        ) {
            let all: Vec<Value> = texts.iter().map(|text| json!({"a": text, "b": [{"c": text}]})).collect();
            let body = serde_json::to_vec_pretty(&json!({"requests": all})).unwrap();
            let (one, other) = body.split_at(cut.min(body.len()));
            prop_assert_eq!(lines(&[one, other]).unwrap(), all);
        }
    }
}
