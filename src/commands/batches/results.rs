//! `sluice batches results`: what came of a batch, into a file or onto standard output, read on
//! where a lost connection broke it off.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Deserialize;
use sluice_shared::domain::{BatchId, State};

use super::{batch_id, interrupted};
use crate::{
    Exit, Failure,
    client::{Client, ClientError},
    output,
};

/// Tries in a row that bring nothing, when nobody said to wait.
const TRIES: u32 = 8;

/// An answer that brought nothing and took less than this is not asked for again at once.
const SOON: Duration = Duration::from_secs(1);

/// Read the results of a batch, in the order of its lines
///
/// They end before the first job that has not ended; --wait goes on to the end of the batch. A
/// file is written when all of it has come, over what it held before.
///
/// Exits with 1 when these are not all of the results yet, and with --wait when not every line
/// succeeded.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line of the results:
  {\"line\":1,\"job\":\"...\",\"state\":\"succeeded\",\"metadata\":{...},\"result\":{\"text\":\"...\",...}}
One that did not succeed has an \"error\" for a \"result\".")]
pub(super) struct Args {
    /// The batch
    #[arg(value_parser = batch_id)]
    id: BatchId,
    /// Write them here [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Wait for the end of the batch
    #[arg(long, short)]
    wait: bool,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<Exit, Failure> {
    let mut reading = Reading {
        client,
        id: args.id,
        wait: args.wait,
        after: 0,
        lines: 0,
        wrong: 0,
    };
    let mut sink = Sink::open(args.out.as_deref())?;
    let all = tokio::select! {
        all = reading.read(&mut sink) => all?,
        stopped = interrupted(args.id) => return stopped,
    };
    sink.finish()?;
    let Reading { lines, wrong, .. } = reading;
    if let Some(out) = &args.out {
        output::note(&format!("{lines} results in {}", out.display()));
    }
    if !all {
        output::note(&format!(
            "The batch has not ended: these are the first {lines} results; --wait waits for all."
        ));
    } else if wrong > 0 {
        output::note(&format!("{wrong} did not succeed"));
    }
    Ok(Exit::when(all && !(args.wait && wrong > 0)))
}

/// What is of interest in a line.
#[derive(Deserialize)]
struct Head {
    line: u64,
    state: Option<State>,
}

struct Reading<'a> {
    client: &'a Client,
    id: BatchId,
    wait: bool,
    /// The last line of the upload that was read.
    after: u64,
    /// How many were read, and how many of these did not succeed.
    lines: u64,
    wrong: u64,
}

impl Reading<'_> {
    /// Reads what there is, or with `wait` everything. Whether that is all.
    async fn read(&mut self, sink: &mut Sink) -> Result<bool, Failure> {
        let mut failures = 0;
        loop {
            let (before, began) = (self.lines, Instant::now());
            let came = self.read_once(sink).await;
            if self.lines > before {
                failures = 0;
            }
            match came {
                Ok(true) => return Ok(true),
                Ok(false) if !self.wait => return Ok(false),
                Ok(false) => {
                    if self.lines == before && began.elapsed() < SOON {
                        tokio::time::sleep(SOON).await;
                    }
                }
                Err(Failure::Client(error)) if self.may_come_yet(&error, failures) => {
                    failures += 1;
                    if failures == 1 {
                        output::note(&format!("{error}; trying again"));
                    }
                    tokio::time::sleep(error.pause(failures)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn may_come_yet(&self, error: &ClientError, failures: u32) -> bool {
        let nobody_is_there = error.is_refused_connection() && self.lines == 0;
        error.is_transient() && (self.wait || (failures < TRIES && !nobody_is_there))
    }

    /// Reads one answer to its end.
    async fn read_once(&mut self, sink: &mut Sink) -> Result<bool, Failure> {
        let mut results = self.client.results(self.id, self.after, self.wait).await?;
        while let Some(line) = results.next().await? {
            let head: Head = serde_json::from_slice(&line)
                .map_err(|error| results.strange(&error.to_string()))?;
            if head.line <= self.after {
                return Err(results.strange("lines that were read before").into());
            }
            sink.write(&line)?;
            self.after = head.line;
            self.lines += 1;
            self.wrong += u64::from(head.state != Some(State::Succeeded));
        }
        Ok(results.are_all())
    }
}

/// Where the lines go.
enum Sink {
    Stdout,
    /// Something that is no file on a disk, such as a named pipe.
    Device(PathBuf, BufWriter<File>),
    /// A file that takes its name when it is whole.
    Draft(Draft),
}

struct Draft {
    out: PathBuf,
    draft: PathBuf,
    writer: BufWriter<File>,
    is_done: bool,
}

impl Sink {
    fn open(out: Option<&Path>) -> Result<Self, Failure> {
        let Some(out) = out else {
            return Ok(Self::Stdout);
        };
        let buffered = |file| BufWriter::with_capacity(1 << 16, file);
        let failure = || Failure::io(out.display().to_string());
        if let Ok(about) = fs::metadata(out) {
            if about.is_dir() {
                return Err(Failure::usage(format!("{} is a folder", out.display())));
            }
            if !about.is_file() {
                let device = File::options().write(true).open(out).map_err(failure())?;
                return Ok(Self::Device(out.to_owned(), buffered(device)));
            }
        }
        // Where a link leads, and not in its place.
        let out = fs::canonicalize(out).unwrap_or_else(|_| out.to_owned());
        let draft = crate::batch::with_suffix(&out, ".part");
        let file = File::create(&draft).map_err(failure())?;
        Ok(Self::Draft(Draft {
            out,
            draft,
            writer: buffered(file),
            is_done: false,
        }))
    }

    fn write(&mut self, line: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout => output::text(&String::from_utf8_lossy(line)),
            Self::Device(path, writer) => writer.write_all(line).map_err(in_file(path)),
            Self::Draft(draft) => draft.writer.write_all(line).map_err(in_file(&draft.draft)),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout => Ok(()),
            Self::Device(path, mut writer) => writer.flush().map_err(in_file(&path)),
            Self::Draft(mut draft) => draft.finish().map_err(in_file(&draft.out)),
        }
    }
}

fn in_file(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    Failure::io(path.display().to_string())
}

impl Draft {
    fn finish(&mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        fs::rename(&self.draft, &self.out)?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = fs::remove_file(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("results.jsonl");
        fs::write(&out, "before").unwrap();
        let mut sink = Sink::open(Some(&out)).unwrap();
        sink.write(b"{\"line\":1}\n").unwrap();
        drop(sink);
        assert_eq!(fs::read_to_string(&out).unwrap(), "before");
        let mut sink = Sink::open(Some(&out)).unwrap();
        sink.write(b"{\"line\":1}\n").unwrap();
        sink.finish().unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap(), "{\"line\":1}\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_device_is_not_replaced_by_a_file() {
        let mut sink = Sink::open(Some(Path::new("/dev/null"))).unwrap();
        assert!(matches!(sink, Sink::Device(..)));
        sink.write(b"{}\n").unwrap();
        sink.finish().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
