//! The lines of the file, one job each.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use sluice_shared::api::NewJob;

/// Longest line; a prompt may have a mebibyte, and escapes make it longer.
const MAX_LINE: u64 = 64 * 1024 * 1024;

/// One line that is a job.
#[derive(Debug)]
pub(super) struct Line {
    /// Its number, from 1.
    pub(super) number: u64,
    /// Where in the file it begins.
    pub(super) offset: u64,
    /// The job, or why it is none.
    pub(super) job: Result<NewJob, String>,
}

/// Reads jobs line by line. Blank lines are passed over, but they count.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    number: u64,
    offset: u64,
}

impl Lines<BufReader<File>> {
    /// The file from its beginning.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(BufReader::with_capacity(
            1 << 16,
            File::open(path)?,
        )))
    }

    /// Goes on at a line that was read before.
    pub(super) fn seek(&mut self, number: u64, offset: u64) -> io::Result<()> {
        self.reader.seek(SeekFrom::Start(offset))?;
        self.number = number - 1;
        self.offset = offset;
        Ok(())
    }
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            number: 0,
            offset: 0,
        }
    }

    /// The next line that is not blank; `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let length = self
                .reader
                .by_ref()
                .take(MAX_LINE)
                .read_until(b'\n', &mut bytes)?;
            if length == 0 {
                return Ok(None);
            }
            let offset = self.offset;
            self.offset += length as u64;
            self.number += 1;
            if length as u64 == MAX_LINE && !bytes.ends_with(b"\n") {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("line {} is longer than 64 MiB", self.number),
                ));
            }
            let mut text = bytes.as_slice();
            if offset == 0 {
                // Some editors begin a file with a byte order mark.
                text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            }
            let text = text.trim_ascii();
            if !text.is_empty() {
                return Ok(Some(Line {
                    number: self.number,
                    offset,
                    job: parse(text),
                }));
            }
        }
    }
}

/// A job object, or a JSON string that is its prompt.
fn parse(text: &[u8]) -> Result<NewJob, String> {
    let job = match text.first() {
        Some(b'"') => serde_json::from_slice(text).map(|prompt| NewJob {
            prompt: Some(prompt),
            ..NewJob::default()
        }),
        Some(b'{') => serde_json::from_slice(text),
        _ => return Err("is neither a job ({\"prompt\": ...}) nor a JSON string".into()),
    };
    let job = job.map_err(|error| without_line(&error))?;
    match (&job.prompt, &job.messages) {
        (Some(_), Some(_)) => Err("has both a prompt and messages; give one".into()),
        (None, None) => Err("has no prompt".into()),
        (Some(prompt), None) if prompt.trim().is_empty() => Err("has an empty prompt".into()),
        (None, Some(messages)) if messages.is_empty() => Err("has no messages".into()),
        _ => Ok(job),
    }
}

/// What serde says, without its own idea of the line, which is always 1.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(text) => format!("{text} (column {})", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Vec<(u64, u64, Result<String, String>)> {
        let mut lines = Lines::new(text);
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            let job = line.job.map(|job| job.prompt.unwrap_or_default());
            all.push((line.number, line.offset, job));
        }
        all
    }

    #[test]
    fn a_line_is_an_object_or_a_string_and_blank_lines_count() {
        let lines = read(b"\"one\"\n\n{\"prompt\":\"three\"}\r\n   \n\"five\"");
        assert_eq!(
            lines,
            [
                (1, 0, Ok("one".into())),
                (3, 7, Ok("three".into())),
                (5, 31, Ok("five".into()))
            ]
        );
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        assert_eq!(read(b"\xef\xbb\xbf\"one\"\n"), [(1, 0, Ok("one".into()))]);
    }

    #[test]
    fn every_bad_line_says_what_is_wrong_with_it() {
        let cases: [(&[u8], &str); 9] = [
            (b"hello", "neither"),
            (b"[1]", "neither"),
            (b"{\"prompt\":1}", "expected a string"),
            (
                b"{\"prompt\":\"a\",\"modle\":\"b\"}",
                "unknown field `modle`",
            ),
            (
                b"{\"prompt\":\"a\"",
                "EOF while parsing an object (column 13)",
            ),
            (b"{}", "no prompt"),
            (b"\" \"", "empty prompt"),
            (b"{\"messages\":[]}", "no messages"),
            (b"{\"prompt\":\"a\",\"messages\":[]}", "both"),
        ];
        for (text, expected) in cases {
            let error = read(text).remove(0).2.unwrap_err();
            assert!(error.contains(expected), "{error} does not say {expected}");
            assert!(!error.contains("line 1"), "{error}");
        }
    }

    #[test]
    fn every_line_of_the_example_is_a_job() {
        let lines = read(include_bytes!("../../examples/prompts.jsonl"));
        assert!(
            lines.len() >= 5 && lines.iter().all(|line| line.2.is_ok()),
            "{lines:?}"
        );
    }

    #[test]
    fn what_is_no_utf8_is_a_bad_line_and_no_end() {
        let lines = read(b"\"\xff\"\n\"good\"\n");
        assert!(lines[0].2.is_err());
        assert_eq!(lines[1].2, Ok("good".into()));
    }

    #[test]
    fn reading_goes_on_where_a_line_began() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.jsonl");
        std::fs::write(&path, "\"one\"\n\"two\"\n\"three\"\n").unwrap();
        let mut lines = Lines::open(&path).unwrap();
        lines.next().unwrap();
        let second = lines.next().unwrap().unwrap();
        lines.next().unwrap();
        lines.seek(second.number, second.offset).unwrap();
        let again = lines.next().unwrap().unwrap();
        assert_eq!((again.number, again.offset), (second.number, second.offset));
        assert_eq!(again.job.unwrap().prompt, Some("two".into()));
    }
}
