//! Bytes come in pieces of any size, lines go out whole. Pure. A line beyond the limit is told of
//! and let go as it comes, so that no more than one line is ever kept.

use bytes::{Bytes, BytesMut};

/// What stands at the start of some files, and in no line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One line with its number, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Line {
    /// Its text, without its end. Lines of nothing but white space are counted and left out.
    Text(u64, Bytes),
    /// It is longer than a line may be.
    TooLong(u64),
}

/// Cuts bytes into lines of at most `most` bytes.
#[derive(Debug)]
pub(in crate::http) struct Lines {
    most: usize,
    buffer: BytesMut,
    /// Bytes of the buffer in which there is no end of a line.
    searched: usize,
    /// The line that the buffer begins with.
    number: u64,
    /// That line is too long, and what is still to come of it counts for nothing.
    skips: bool,
}

impl Lines {
    pub(in crate::http) fn new(most: usize) -> Self {
        Self {
            most,
            buffer: BytesMut::new(),
            searched: 0,
            number: 1,
            skips: false,
        }
    }

    /// Takes more bytes.
    pub(in crate::http) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The number of the last line that was begun.
    pub(in crate::http) fn number(&self) -> u64 {
        self.number
    }

    /// The next line that is whole.
    pub(in crate::http) fn next(&mut self) -> Option<Line> {
        loop {
            let rest = &self.buffer[self.searched..];
            let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                if self.skips {
                    self.drop_buffer();
                    return None;
                }
                if self.buffer.len() > self.most {
                    self.skips = true;
                    self.drop_buffer();
                    return Some(Line::TooLong(self.number));
                }
                return None;
            };
            let line = self.buffer.split_to(self.searched + at + 1).freeze();
            self.searched = 0;
            let number = self.number;
            self.number += 1;
            if std::mem::take(&mut self.skips) {
                continue;
            }
            if let Some(line) = self.line(number, &line) {
                return Some(line);
            }
        }
    }

    /// The last line, which needs no end.
    pub(in crate::http) fn finish(mut self) -> Option<Line> {
        if self.skips {
            return None;
        }
        let rest = std::mem::take(&mut self.buffer).freeze();
        self.line(self.number, &rest)
    }

    fn line(&self, number: u64, line: &Bytes) -> Option<Line> {
        let mut text = line.as_ref();
        if number == 1 {
            text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        }
        let text = text.trim_ascii();
        if text.is_empty() {
            return None;
        }
        if text.len() > self.most {
            return Some(Line::TooLong(number));
        }
        Some(Line::Text(number, line.slice_ref(text)))
    }

    fn drop_buffer(&mut self) {
        self.buffer.clear();
        self.searched = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(most: usize, pieces: &[&[u8]]) -> Vec<Line> {
        let mut lines = Lines::new(most);
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(piece);
            while let Some(line) = lines.next() {
                found.push(line);
            }
        }
        found.extend(lines.finish());
        found
    }

    fn text(number: u64, text: &str) -> Line {
        Line::Text(number, Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn lines_are_counted_with_those_left_out() {
        assert_eq!(
            cut(9, &[b"\xef\xbb\xbfa\r\n\n  \nb", b"c\n", b"d"]),
            [text(1, "a"), text(4, "bc"), text(5, "d")]
        );
        assert_eq!(cut(9, &[]), []);
        assert_eq!(cut(9, &[b"\n"]), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_told_of_once_and_let_go() {
        let long = [b'x'; 50];
        assert_eq!(
            cut(9, &[b"a\n", &long, &long, b"y\nb\n"]),
            [text(1, "a"), Line::TooLong(2), text(3, "b")]
        );
        assert_eq!(cut(9, &[&long, &long]), [Line::TooLong(1)]);
        assert_eq!(cut(9, &[b"0123456789\n"]), [Line::TooLong(1)]);
        assert_eq!(cut(9, &[b"0123456789"]), [Line::TooLong(1)]);
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_how_the_bytes_come(
            whole in "[a \n]{0,60}", cuts in proptest::collection::vec(0_usize..60, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| *at < whole.len()).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for at in cuts {
                pieces.push(&whole.as_bytes()[from..at]);
                from = at;
            }
            pieces.push(&whole.as_bytes()[from..]);
            prop_assert_eq!(cut(100, &pieces), cut(100, &[whole.as_bytes()]));
        }
    }
}
