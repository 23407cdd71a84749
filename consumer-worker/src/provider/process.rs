//! Running a program: fed on standard input, read as it writes, and gone when we are done.
//!
//! A program runs as the leader of its own process group, and the group is what is ended: on
//! cancel, on timeout, on too much output, and when the future is dropped. A descendant that has
//! left the group (the CLI's own shell does) is found by a mark in its environment when a run is
//! ended early; a program that ends by itself may leave such a one behind on purpose. When the
//! worker itself is killed, the [`guardian`](super::guardian) does the same in its place.

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use sluice_shared::domain::Outcome;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
};

use super::{
    guardian::{self, Guarded},
    scratch::Scratch,
    stop::Stop,
};

/// How long a program may take to end when it is asked to, before it is killed. A CLI that is
/// writing a renewed login down needs a moment; one that takes longer does not hold up a cancel.
const GRACE: Duration = Duration::from_secs(1);
/// How long the streams of a program that has ended are read on. A descendant that we cannot
/// find may hold them open for ever.
const DRAIN: Duration = Duration::from_secs(2);
/// How much of the end of standard error is kept.
const STDERR_BYTES: usize = 16 * 1024;
const CHUNK: usize = 32 * 1024;
/// The variable by which a run's processes are known.
pub(super) const MARK: &str = "SLUICE_RUN";

/// How a program ended by itself.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) status: ExitStatus,
    /// The end of what it wrote to standard error.
    pub(super) stderr: String,
}

impl Exit {
    /// Its exit code, or 128 and the signal that ended it, as a shell would say.
    pub(super) fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}

/// A command for `program` in `scratch`, with an environment of our making: `PATH`, `HOME`,
/// `LANG`, `TMPDIR` and nothing else of the worker's.
pub(super) fn command(program: &Path, scratch: &Scratch) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()),
        )
        .env(
            "LANG",
            std::env::var_os("LANG").unwrap_or_else(|| "C.UTF-8".into()),
        )
        .env("HOME", &scratch.home)
        .env("TMPDIR", &scratch.tmp)
        .current_dir(&scratch.work);
    command
}

/// The program that `name` means on this machine: a path, or a name on `PATH`.
pub(super) fn find_program(name: &Path) -> Result<PathBuf, String> {
    if name.components().count() > 1 || name.is_absolute() {
        let path = std::path::absolute(name).map_err(|error| error.to_string())?;
        return if is_executable(&path) {
            Ok(path)
        } else {
            Err(format!("{} is not there or not executable", path.display()))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
        .ok_or_else(|| format!("there is no program `{}` on PATH", name.display()))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Runs `command` with `input` on its standard input to its end. What it writes goes to `output`
/// chunk by chunk; an outcome from there, or from `stop`, ends it at once.
pub(super) async fn run(
    command: Command,
    input: Vec<u8>,
    stop: Stop<'_>,
    mut output: impl FnMut(&[u8]) -> Result<(), Outcome>,
) -> Result<Exit, Outcome> {
    let (mut group, streams) = start(command)?;
    let talk = group.talk(input, streams, &mut output);
    match stop.race(talk).await {
        Ok(Ok(exit)) => Ok(exit),
        Ok(Err(outcome)) | Err(outcome) => {
            group.end().await;
            Err(outcome)
        }
    }
}

/// Starts `command` as the leader of a group of its own, with pipes for its streams.
pub(super) fn start(mut command: Command) -> Result<(Group, Streams), Outcome> {
    let mark = uuid::Uuid::now_v7().to_string();
    command
        .env(MARK, &mark)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        // Reaps it if we are dropped; the group is ended by `Group`.
        .kill_on_drop(true);
    // That a program cannot be started (it is just being updated, there is no memory or no
    // process left) is neither the job's fault nor a failed attempt: the account rests.
    let mut child = command.spawn().map_err(|error| Outcome::Overloaded {
        until: None,
        detail: format!("the program cannot be started on this worker: {error}"),
    })?;
    let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    Ok((Group::new(child, mark), streams))
}

pub(super) type Streams = (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>);

/// A running program and all that came of it; ended when dropped.
#[derive(Debug)]
pub(super) struct Group {
    child: Child,
    /// The id of the group, which is that of its leader; `None` once the group is ended.
    id: Option<Pid>,
    mark: String,
    /// Before it has any input, so that a program that waits for it is never left behind.
    guarded: Option<Guarded>,
}

impl Group {
    fn new(child: Child, mark: String) -> Self {
        let id = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        let guarded = id.map(|id| guardian::watch(id, &mark));
        Self {
            child,
            id,
            mark,
            guarded,
        }
    }

    /// Whether it has ended by itself. One of which that cannot be told is as good as gone.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// How it ended, when it does so in a moment, which one whose input has ended should.
    pub(super) async fn wait(&mut self) -> Option<Exit> {
        let waited = tokio::time::timeout(GRACE, self.child.wait()).await;
        let status = waited.ok()?.ok()?;
        self.end_rest();
        Some(Exit {
            status,
            stderr: String::new(),
        })
    }

    /// Feeds and reads the program until it has ended.
    async fn talk(
        &mut self,
        input: Vec<u8>,
        (stdin, stdout, stderr): Streams,
        output: &mut impl FnMut(&[u8]) -> Result<(), Outcome>,
    ) -> Result<Exit, Outcome> {
        let mut tail = Vec::new();
        // All three at once: a program that answers before it has read its input, or never reads
        // it, would wait for us while we wait for it.
        let mut streams = Box::pin(async {
            tokio::try_join!(
                feed(stdin, input),
                read(stdout, output),
                keep_tail(stderr, &mut tail)
            )
        });
        let waited = tokio::select! {
            read = &mut streams => {
                read?;
                self.child.wait().await
            }
            status = self.child.wait() => {
                // What is left in the pipes is still to be read, and a descendant must not hold
                // them open.
                self.end_rest();
                if let Ok(read) = tokio::time::timeout(DRAIN, &mut streams).await {
                    read?;
                }
                status
            }
        };
        drop(streams);
        self.end_rest();
        match waited {
            Ok(status) => Ok(Exit {
                status,
                stderr: String::from_utf8_lossy(&tail).into_owned(),
            }),
            Err(error) => Err(Outcome::failed("wait", error.to_string())),
        }
    }

    /// Ends it: asks first, then kills, and waits until its leader is gone.
    pub(super) async fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        let gone = tokio::time::timeout(GRACE, self.child.wait()).await.is_ok();
        self.kill();
        if !gone {
            // After SIGKILL this takes as long as the kernel does.
            drop(tokio::time::timeout(GRACE, self.child.wait()).await);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(id) = self.id {
            // An error means that there is no such group any more.
            killpg(id, signal).ok();
        }
    }

    /// Kills what is left of the group when its leader has just ended. The id can hardly be
    /// another's already, for ids are given in turn; later it could be, so that it is forgotten.
    fn end_rest(&mut self) {
        self.signal(Signal::SIGKILL);
        self.id = None;
        self.guarded = None;
    }

    /// Kills the group and whatever left it.
    fn kill(&mut self) {
        self.end_rest();
        // Twice, because a process that is just being killed may have forked.
        for _ in 0..2 {
            for straggler in marked(&self.mark) {
                kill(straggler, Signal::SIGKILL).ok();
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.id.is_some() {
            self.kill();
        }
    }
}

/// The processes with this mark in their environment. Only Linux tells; elsewhere the group has
/// to be enough.
fn marked(mark: &str) -> Vec<Pid> {
    let entry = format!("{MARK}={mark}");
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|id: &i32| {
            std::fs::read(format!("/proc/{id}/environ")).is_ok_and(|environment| {
                environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == entry.as_bytes())
            })
        })
        .map(Pid::from_raw)
        .collect()
}

/// Writes all of `input`. That the program does not read it to its end is its own affair.
async fn feed(stdin: Option<ChildStdin>, input: Vec<u8>) -> Result<(), Outcome> {
    if let Some(mut stdin) = stdin {
        drop(stdin.write_all(&input).await);
    }
    Ok(())
}

/// Reads what is left in the pipes of a program that ends, for a moment at most.
pub(super) async fn read_rest(
    (stdout, stderr): (&mut ChildStdout, &mut ChildStderr),
    tail: &mut Vec<u8>,
    mut output: impl FnMut(&[u8]) -> Result<(), Outcome>,
) -> Result<(), Outcome> {
    let streams = async {
        tokio::try_join!(
            read(Some(stdout), &mut output),
            keep_tail(Some(stderr), tail)
        )
    };
    match tokio::time::timeout(DRAIN, streams).await {
        Ok(read) => read.map(drop),
        Err(_) => Ok(()),
    }
}

async fn read(
    stdout: Option<impl AsyncRead + Unpin>,
    output: &mut impl FnMut(&[u8]) -> Result<(), Outcome>,
) -> Result<(), Outcome> {
    let Some(mut stdout) = stdout else {
        return Ok(());
    };
    let mut chunk = Vec::with_capacity(CHUNK);
    while next_chunk(&mut stdout, &mut chunk).await {
        output(&chunk)?;
    }
    Ok(())
}

/// Reads all of standard error and keeps its end.
async fn keep_tail(
    stderr: Option<impl AsyncRead + Unpin>,
    tail: &mut Vec<u8>,
) -> Result<(), Outcome> {
    let Some(mut stderr) = stderr else {
        return Ok(());
    };
    let mut chunk = Vec::with_capacity(CHUNK);
    while next_chunk(&mut stderr, &mut chunk).await {
        append(tail, &chunk);
    }
    Ok(())
}

/// Appends to what is kept of standard error.
pub(super) fn append(tail: &mut Vec<u8>, chunk: &[u8]) {
    tail.extend_from_slice(chunk);
    let beyond = tail.len().saturating_sub(STDERR_BYTES);
    tail.drain(..beyond);
}

/// The next bytes into `chunk`; false at the end. A stream that fails has ended.
pub(super) async fn next_chunk(stream: &mut (impl AsyncRead + Unpin), chunk: &mut Vec<u8>) -> bool {
    chunk.clear();
    matches!(stream.read_buf(chunk).await, Ok(length) if length > 0)
}

/// Turns bytes as they come into text: a character may come in two halves, and what is no text
/// is marked as such.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character whose end has not come.
    rest: Vec<u8>,
}

impl Utf8 {
    /// The text of `chunk` and what was left before it.
    pub(super) fn decode(&mut self, chunk: &[u8]) -> String {
        self.rest.extend_from_slice(chunk);
        let mut text = String::new();
        let bytes = std::mem::take(&mut self.rest);
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            let is_last = chunks.peek().is_none();
            if is_last && is_a_beginning(invalid) {
                self.rest = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    /// What is left when no more comes.
    pub(super) fn finish(self) -> String {
        String::from_utf8_lossy(&self.rest).into_owned()
    }
}

/// Whether more bytes could make `bytes` a character.
fn is_a_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// What a directory that cannot be made comes to: this machine's trouble, not the job's.
pub(super) fn no_scratch(error: &io::Error) -> Outcome {
    Outcome::Overloaded {
        until: None,
        detail: format!("no private directory can be made on this worker: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_in_pieces_is_the_same_text(text in "\\PC{0,40}", piece in 1usize..5) {
            let mut utf8 = Utf8::default();
            let mut whole = String::new();
            for chunk in text.as_bytes().chunks(piece) {
                whole += &utf8.decode(chunk);
            }
            whole += &utf8.finish();
            prop_assert_eq!(whole, text);
        }

        #[test]
        fn garbage_in_pieces_is_what_it_is_in_one(
            bytes in proptest::collection::vec(any::<u8>(), 0..60), piece in 1usize..5
        ) {
            let mut utf8 = Utf8::default();
            let mut whole = String::new();
            for chunk in bytes.chunks(piece) {
                whole += &utf8.decode(chunk);
            }
            whole += &utf8.finish();
            prop_assert_eq!(whole, String::from_utf8_lossy(&bytes));
        }
    }
}
