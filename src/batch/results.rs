//! What came back: each result at once into the `.part` file, and all of them in input order at
//! the end. Only the place of each result is held in memory, not its text.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sluice_shared::{
    api::{JobError, JobView},
    domain::{JobId, State, Usage},
};

/// The result of one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ResultLine {
    /// The line in the file, from 1.
    pub(super) line: u64,
    /// Its job.
    pub(super) id: JobId,
    /// How it ended; none when the server does not know the job any more.
    pub(super) state: Option<State>,
    /// The answer.
    pub(super) text: Option<String>,
    /// The model that wrote it.
    pub(super) model: Option<String>,
    /// What it used.
    pub(super) usage: Option<Usage>,
    /// What went wrong.
    pub(super) error: Option<JobError>,
}

impl ResultLine {
    /// Of a job that has ended.
    pub(super) fn of(line: u64, job: JobView) -> Self {
        let mut result = Self {
            line,
            id: job.id,
            state: Some(job.state),
            text: None,
            model: job.model,
            usage: None,
            error: job.error,
        };
        if let Some(completion) = job.result {
            result.text = Some(completion.text);
            result.model = completion.model.or(result.model);
            result.usage = Some(completion.usage);
        }
        result
    }

    /// Of a job that is not known (any more).
    pub(super) fn unknown(line: u64, id: JobId) -> Self {
        let error = JobError {
            code: "not_found".into(),
            message: "the server does not know this job; was its history pruned?".into(),
        };
        let error = Some(error);
        Self {
            line,
            id,
            state: None,
            text: None,
            model: None,
            usage: None,
            error,
        }
    }

    pub(super) fn succeeded(&self) -> bool {
        self.state == Some(State::Succeeded)
    }
}

/// Where a result lies in the `.part` file.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    length: u64,
    succeeded: bool,
}

/// The results so far.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    end: u64,
    places: BTreeMap<u64, Place>,
}

impl Part {
    /// Opens the results of an earlier run, or begins. What is not a result of the job that
    /// `expected` names for its line is passed over: it is of another batch, or was cut short.
    pub(super) fn open(path: &Path, expected: impl Fn(u64) -> Option<JobId>) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        let mut part = Self {
            path: path.to_owned(),
            file,
            end: 0,
            places: BTreeMap::new(),
        };
        let mut reader = BufReader::new(part.file.try_clone()?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)? as u64;
            if !line.ends_with(b"\n") {
                break;
            }
            if let Ok(result) = serde_json::from_slice::<ResultLine>(&line)
                && expected(result.line) == Some(result.id)
            {
                let succeeded = result.succeeded();
                part.places.insert(
                    result.line,
                    Place {
                        offset: part.end,
                        length,
                        succeeded,
                    },
                );
            }
            part.end += length;
        }
        part.file.set_len(part.end)?;
        Ok(part)
    }

    /// Whether the line has its result.
    pub(super) fn has(&self, line: u64) -> bool {
        self.places.contains_key(&line)
    }

    /// How many lines have their results.
    pub(super) fn len(&self) -> u64 {
        self.places.len() as u64
    }

    /// How many of them succeeded.
    pub(super) fn succeeded(&self) -> u64 {
        self.places.values().filter(|place| place.succeeded).count() as u64
    }

    /// Keeps a result.
    pub(super) fn add(&mut self, result: &ResultLine) -> io::Result<()> {
        let mut line = serde_json::to_vec(result)?;
        line.push(b'\n');
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(&line)?;
        let length = line.len() as u64;
        let place = Place {
            offset: self.end,
            length,
            succeeded: result.succeeded(),
        };
        self.places.insert(result.line, place);
        self.end += length;
        Ok(())
    }

    /// Leaves no `.part` file behind when nothing is in it.
    pub(super) fn discard(self) {
        if self.places.is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Writes all results to `output` in input order, whole or not at all, and removes the
    /// `.part` file.
    pub(super) fn finish(mut self, output: &Path) -> io::Result<()> {
        let draft = with_suffix(output, ".tmp");
        let mut writer = BufWriter::with_capacity(1 << 16, File::create(&draft)?);
        for place in self.places.values() {
            self.file.seek(SeekFrom::Start(place.offset))?;
            io::copy(&mut (&mut self.file).take(place.length), &mut writer)?;
        }
        writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        fs::rename(&draft, output)?;
        fs::remove_file(&self.path)
    }
}

/// The path with something added to its file name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(line: u64, id: JobId, text: &str) -> ResultLine {
        ResultLine {
            line,
            id,
            state: Some(State::Succeeded),
            text: Some(text.into()),
            model: None,
            usage: None,
            error: None,
        }
    }

    #[test]
    fn results_come_out_in_input_order_and_the_part_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.part");
        let output = dir.path().join("r.jsonl");
        let ids: Vec<JobId> = (0..3).map(|_| JobId::generate()).collect();
        let mut part = Part::open(&path, |_| None).unwrap();
        for line in [3, 1, 2] {
            part.add(&result(line, ids[line as usize - 1], "ä\nb"))
                .unwrap();
        }
        assert_eq!((part.len(), part.succeeded()), (3, 3));
        part.finish(&output).unwrap();
        let text = fs::read_to_string(&output).unwrap();
        let lines: Vec<ResultLine> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            lines.iter().map(|result| result.line).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert_eq!(lines[0].text.as_deref(), Some("ä\nb"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_interrupted_run_keeps_what_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.part");
        let output = dir.path().join("r.jsonl");
        let ids: Vec<JobId> = (0..3).map(|_| JobId::generate()).collect();
        let mut part = Part::open(&path, |_| None).unwrap();
        part.add(&result(2, ids[1], "two")).unwrap();
        part.add(&result(1, JobId::generate(), "of another batch"))
            .unwrap();
        part.file.write_all(b"{\"line\":3,\"id\":\"01").unwrap();
        drop(part);

        let expected = |line: u64| ids.get(line as usize - 1).copied();
        let mut part = Part::open(&path, expected).unwrap();
        assert!(part.has(2) && !part.has(1) && !part.has(3));
        part.add(&result(1, ids[0], "one")).unwrap();
        part.finish(&output).unwrap();
        let text = fs::read_to_string(&output).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.contains("\"one\"") && text.contains("\"two\""),
            "{text}"
        );
    }

    #[test]
    fn a_result_has_every_field_whatever_happened() {
        let line = serde_json::to_value(ResultLine::unknown(7, JobId::generate())).unwrap();
        let mut keys: Vec<&str> = line
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            ["error", "id", "line", "model", "state", "text", "usage"]
        );
        assert_eq!(line["error"]["code"], "not_found");
    }
}
