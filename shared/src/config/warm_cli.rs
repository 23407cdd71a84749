//! How processes of the Claude Code CLI are kept from one prompt to the next.

use std::time::Duration;

use crate::domain::Span;

const MOST_PROCESSES: u16 = 256;
const LEAST_IDLE: Duration = Duration::from_secs(1);

/// How many processes of the CLI an account keeps between prompts, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmCli {
    /// At most this many at once, those that run a prompt included. 0, the default, for a
    /// process of its own for each prompt.
    pub processes: u16,
    /// Prompts that one process runs before another takes its place. Default 50; with 1, each
    /// prompt has a process of its own that was started ahead.
    pub turns: u32,
    /// How long one may wait for its next prompt. Default five minutes.
    pub idle: Span,
}

impl WarmCli {
    pub(super) fn new(processes: Option<u16>, turns: Option<u32>, idle: Option<Span>) -> Self {
        Self {
            processes: processes.unwrap_or(0),
            turns: turns.unwrap_or(50),
            idle: idle.unwrap_or(Span::seconds(300)),
        }
    }

    /// The key that cannot be so, and why.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        if self.processes > MOST_PROCESSES {
            return Some((
                "warm_processes",
                "must be at most 256: each takes 120 to 300 MB",
            ));
        }
        if self.turns == 0 {
            return Some(("warm_turns", "must be at least 1"));
        }
        if self.idle.0 < LEAST_IDLE {
            return Some(("warm_idle", "must be at least 1s"));
        }
        None
    }
}
