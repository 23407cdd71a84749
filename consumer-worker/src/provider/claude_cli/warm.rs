//! One process of the CLI that runs prompts one after another.
//!
//! Between two of them its conversation is reset by its own `/clear`, and nothing but evidence
//! counts: the CLI has to say that it reset, go on under another conversation id, and say nothing
//! besides. Every line of the next answer has to carry that id. A process about which there is
//! any doubt is ended, which costs the next prompt a start and nothing else.
//!
//! What the CLI leaves in the next request is a note of its own that `/clear` was run: the same
//! words each time, and nothing of the prompt before.

use std::time::Duration;

use futures::FutureExt as _;
use serde::Deserialize;
use serde_json::json;
use sluice_shared::domain::Outcome;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{
    super::{process, scratch::Scratch},
    lines::Lines,
    report::{Conversation, Report},
};

/// How long a reset may take, which is some 15 ms, on a busy machine: the answer waits for it.
const RESET: Duration = Duration::from_secs(2);
const CHUNK: usize = 32 * 1024;

/// A process that waits for a prompt; ended when dropped.
#[derive(Debug)]
pub(super) struct Warm {
    group: process::Group,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: ChildStderr,
    /// Longest answer, in bytes.
    max_output_bytes: usize,
    conversation: Conversation,
    /// Prompts that it has run.
    turns: u32,
    _scratch: Scratch,
}

/// How a turn ended.
#[derive(Debug)]
pub(super) struct Turn {
    /// The exit code, if the process has ended.
    pub(super) code: Option<i32>,
    /// The end of what it wrote to standard error.
    pub(super) stderr: String,
    /// Nothing speaks against another one, if the answer is a good one.
    pub(super) is_clean: bool,
}

impl Warm {
    /// Starts `command`, which lives in `scratch`.
    pub(super) fn start(
        command: Command,
        scratch: Scratch,
        max_output_bytes: usize,
    ) -> Result<Self, Outcome> {
        let (group, streams) = process::start(command)?;
        let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
            return Err(Outcome::failed("pipes", "the program has no pipes"));
        };
        Ok(Self {
            group,
            stdin: Some(stdin),
            stdout,
            stderr,
            max_output_bytes,
            conversation: Conversation::default(),
            turns: 0,
            _scratch: scratch,
        })
    }

    pub(super) fn turns(&self) -> u32 {
        self.turns
    }

    pub(super) fn conversation(&self) -> Conversation {
        self.conversation.clone()
    }

    /// Whether it waits for a prompt, as far as can be told: it runs, and has said nothing since.
    pub(super) fn is_waiting(&mut self) -> bool {
        let mut byte = [0];
        !self.group.has_ended()
            && self.stdout.read(&mut byte).now_or_never().is_none()
            && self.stderr.read(&mut byte).now_or_never().is_none()
    }

    /// Has it run one prompt and takes its answer into `report`.
    ///
    /// # Errors
    /// When the answer is too long; then it must not be used again.
    pub(super) async fn turn(
        &mut self,
        prompt: &str,
        report: &mut Report<'_>,
    ) -> Result<Turn, Outcome> {
        self.turns = self.turns.saturating_add(1);
        let mut lines = Lines::new(self.max_output_bytes);
        let input = user(prompt);
        let mut is_fed = false;
        let mut feed = Box::pin(write(self.stdin.as_mut(), &input));
        let (mut chunk, mut words) = (Vec::with_capacity(CHUNK), Vec::new());
        let (mut said, mut tail) = (Vec::with_capacity(CHUNK), Vec::new());
        let mut has_stderr = true;
        let is_open = loop {
            tokio::select! {
                // What it says first, so that its last words are read before its end is seen.
                more = process::next_chunk(&mut self.stdout, &mut chunk) => {
                    if !more {
                        break false;
                    }
                    lines.feed(&chunk, |line| {
                        if report.is_over() {
                            words.extend_from_slice(line);
                        }
                        report.line(line)
                    })?;
                    if report.is_over() {
                        break true;
                    }
                }
                more = process::next_chunk(&mut self.stderr, &mut said), if has_stderr => {
                    process::append(&mut tail, &said);
                    has_stderr = more;
                }
                written = &mut feed, if !is_fed => {
                    // One that does not read on has ended, or is about to.
                    is_fed = written;
                    if !written {
                        break false;
                    }
                }
            }
        };
        drop(feed);
        let mut code = None;
        if !is_open {
            self.stdin = None;
            let pipes = (&mut self.stdout, &mut self.stderr);
            process::read_rest(pipes, &mut tail, |rest| {
                lines.feed(rest, |line| report.line(line))
            })
            .await?;
            report.line(lines.rest())?;
            code = self.group.wait().await.map(|exit| exit.code());
        }
        let is_clean = is_open
            && is_fed
            && report.conversation().id.is_some()
            && lines.rest().is_empty()
            && words.is_empty()
            && tail.is_empty();
        self.conversation = report.conversation();
        Ok(Turn {
            code,
            stderr: String::from_utf8_lossy(&tail).into_owned(),
            is_clean,
        })
    }

    /// Has it forget the last prompt. False when that is not certain.
    pub(super) async fn reset(&mut self) -> bool {
        timeout(RESET, self.clear()).await.unwrap_or(false)
    }

    async fn clear(&mut self) -> bool {
        if !write(self.stdin.as_mut(), &user("/clear")).await {
            return false;
        }
        let mut lines = Lines::new(self.max_output_bytes);
        let mut reset = Reset::default();
        let mut chunk = Vec::with_capacity(CHUNK);
        while !reset.is_over {
            if !process::next_chunk(&mut self.stdout, &mut chunk).await {
                return false;
            }
            let fed = lines.feed(&chunk, |line| {
                reset.line(line);
                Ok(())
            });
            if fed.is_err() {
                return false;
            }
        }
        if !reset.is_proven(&self.conversation) || !lines.rest().is_empty() || !self.is_waiting() {
            return false;
        }
        self.conversation = Conversation {
            id: reset.id,
            cost_before: reset.cost.unwrap_or(self.conversation.cost_before),
        };
        true
    }

    /// Ends it in good order: at the end of its input it goes by itself.
    pub(super) async fn end(mut self) {
        self.stdin = None;
        if self.group.wait().await.is_none() {
            self.group.end().await;
        }
    }

    /// Ends it now.
    pub(super) async fn stop(mut self) {
        self.group.end().await;
    }
}

/// What the CLI has said since `/clear`.
#[derive(Debug, Default)]
struct Reset {
    was_said: bool,
    is_over: bool,
    is_odd: bool,
    id: Option<String>,
    cost: Option<f64>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    ConversationReset {},
    System {},
    Assistant {},
    /// May come late, of the answer before.
    RateLimitEvent {},
    Result {
        is_error: bool,
        num_turns: u64,
        session_id: Option<String>,
        total_cost_usd: Option<f64>,
    },
}

impl Reset {
    fn line(&mut self, line: &[u8]) {
        // After the result nothing is expected, and before it nothing that we do not know.
        self.is_odd |= self.is_over;
        match serde_json::from_slice(line) {
            Ok(Line::ConversationReset {}) => self.was_said = true,
            Ok(Line::System {} | Line::Assistant {} | Line::RateLimitEvent {}) => {}
            Ok(Line::Result {
                is_error,
                num_turns,
                session_id,
                total_cost_usd,
            }) => {
                self.is_odd |= is_error || num_turns != 0;
                self.is_over = true;
                self.id = session_id;
                self.cost = total_cost_usd;
            }
            Err(_) => self.is_odd = true,
        }
    }

    fn is_proven(&self, before: &Conversation) -> bool {
        self.was_said && !self.is_odd && self.id.is_some() && self.id != before.id
    }
}

/// A user's message as a line of input.
fn user(text: &str) -> Vec<u8> {
    let message = json!({"type": "user", "message": {"role": "user", "content": text}});
    // Some take these for the end of a line; in JSON they stand only within a text.
    let line = message.to_string();
    let line = line.replace('\u{2028}', "\\u2028");
    let mut line = line.replace('\u{2029}', "\\u2029").into_bytes();
    line.push(b'\n');
    line
}

/// Whether all of `input` was taken.
async fn write(stdin: Option<&mut ChildStdin>, input: &[u8]) -> bool {
    match stdin {
        Some(stdin) => stdin.write_all(input).await.is_ok() && stdin.flush().await.is_ok(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"{"type":"conversation_reset","new_conversation_id":"x"}"#;

    fn is_proven(lines: &[&str]) -> bool {
        let mut reset = Reset::default();
        for line in lines {
            reset.line(line.as_bytes());
        }
        reset.is_proven(&Conversation {
            id: Some("before".into()),
            cost_before: 0.0,
        })
    }

    fn result(is_error: bool, turns: u64, id: &str) -> String {
        format!(
            r#"{{"type":"result","is_error":{is_error},"num_turns":{turns},"session_id":"{id}"}}"#
        )
    }

    #[test]
    fn only_a_reset_that_is_told_in_full_is_one() {
        let good = result(false, 0, "after");
        assert!(is_proven(&[SAID, r#"{"type":"system"}"#, &good]));
        assert!(!is_proven(&[&good]), "it did not say so");
        assert!(!is_proven(&[SAID]), "it is not over");
        assert!(!is_proven(&[SAID, &result(false, 0, "before")]));
        assert!(!is_proven(&[SAID, &result(true, 0, "after")]));
        assert!(!is_proven(&[SAID, &result(false, 1, "after")]));
        assert!(!is_proven(&[SAID, r#"{"type":"news"}"#, &good]));
        assert!(!is_proven(&[SAID, "no json", &good]));
        assert!(!is_proven(&[SAID, &good, r#"{"type":"system"}"#]));
    }

    #[test]
    fn a_prompt_is_one_line() {
        let line = user("a\nb\r\u{2028}c\u{2029}\"");
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let text = String::from_utf8(line).unwrap();
        assert!(!text.contains(['\r', '\u{2028}', '\u{2029}']), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["message"]["content"], "a\nb\r\u{2028}c\u{2029}\"");
    }
}
