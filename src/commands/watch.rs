//! `sluice watch`: the live text of a job.

use std::io::{self, IsTerminal};

use sluice_shared::{
    api::JobView,
    domain::{JobId, State},
};

use super::{Server, job_id, submit};
use crate::{
    Exit, Failure,
    client::{Client, Happening},
    home::Home,
    output,
};

/// Watch a job: its text as it comes
///
/// The text goes to standard output, what happens to the job to standard error. When an attempt
/// fails and another answers anew, the text so far is void, and that is said; `sluice get --wait
/// --text` prints nothing but the answer. It may be called at any time: the text is told from its
/// beginning. A connection that is lost is made again where it broke off.
///
/// Exits with 0 when the job succeeded.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice watch 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42
  sluice watch $(sluice submit 'Tell me a story.')
  sluice watch --json 0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42 | jq -r 'select(.event == \"text\").text'

The lines of --json:
  {\"event\":\"state\",\"job\":{...}}
  {\"event\":\"text\",\"attempt\":1,\"text\":\"...\"}
  {\"event\":\"void\",\"attempt\":1}             the text of this attempt counts no more
  {\"event\":\"end\",\"job\":{...}}              the last one, with the whole answer")]
pub(crate) struct Args {
    /// The job
    #[arg(value_parser = job_id)]
    id: JobId,

    /// Print JSON, one event a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    tokio::select! {
        ended = Box::pin(watch(&client, args)) => ended,
        stopped = submit::interrupted(args.id) => stopped,
    }
}

async fn watch(client: &Client, args: &Args) -> Result<Exit, Failure> {
    let mut live = client.live(args.id);
    let mut screen = Screen {
        is_terminal: io::stdout().is_terminal(),
        ..Screen::default()
    };
    let mut exit = Exit::Failed;
    let notice = |error: &_| output::note(&format!("{error}; trying again"));
    while let Some(happening) = live.next(notice).await? {
        if args.json {
            output::json_line(&happening)?;
        } else {
            screen.show(&happening)?;
        }
        if let Happening::End { job } = happening {
            if args.json && job.state != State::Succeeded {
                submit::tell_end(&job);
            }
            exit = Exit::when(job.state == State::Succeeded);
        }
    }
    Ok(exit)
}

/// What was printed, and how to go on from there.
#[derive(Debug, Default)]
struct Screen {
    is_terminal: bool,
    /// The text that was shown and counts.
    shown: String,
    /// The last line has no end yet.
    is_open: bool,
}

impl Screen {
    fn show(&mut self, happening: &Happening) -> Result<(), Failure> {
        match happening {
            Happening::State { job } => self.say(&state(job)),
            Happening::Text { text, .. } => {
                self.shown.push_str(text);
                self.print(text)
            }
            Happening::Void { attempt } => {
                self.void(&format!("The text of attempt {attempt} is void."))
            }
            Happening::End { job } => self.end(job),
        }
    }

    fn end(&mut self, job: &JobView) -> Result<(), Failure> {
        let Some(result) = &job.result else {
            self.close()?;
            submit::tell_end(job);
            return Ok(());
        };
        match rest(&self.shown, &result.text) {
            Some(rest) => self.print(rest)?,
            None => {
                self.void("The text so far is void. The answer is:")?;
                self.print(&result.text)?;
            }
        }
        self.is_open |= result.text.is_empty();
        self.close()
    }

    /// A line on standard error, which is a line of its own where both are seen.
    fn say(&mut self, line: &str) -> Result<(), Failure> {
        if self.is_terminal {
            self.close()?;
        }
        output::note(line);
        Ok(())
    }

    fn void(&mut self, line: &str) -> Result<(), Failure> {
        self.close()?;
        self.shown.clear();
        output::note(line);
        Ok(())
    }

    fn print(&mut self, text: &str) -> Result<(), Failure> {
        let Some(last) = text.chars().last() else {
            return Ok(());
        };
        self.is_open = last != '\n';
        if self.is_terminal {
            output::print(&output::inert(text))
        } else {
            output::print(text)
        }
    }

    fn close(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.is_open) {
            output::print("\n")?;
        }
        Ok(())
    }
}

/// What of the answer was not shown yet; `None` when something else was shown.
fn rest<'a>(shown: &str, answer: &'a str) -> Option<&'a str> {
    let is_the_same = shown.trim_end() == answer.trim_end();
    answer
        .strip_prefix(shown)
        .or_else(|| is_the_same.then_some(""))
}

fn state(job: &JobView) -> String {
    let cancelled = if job.cancel_requested {
        ", being cancelled"
    } else {
        ""
    };
    match &job.account {
        Some(account) => format!(
            "{} on {account} (attempt {}){cancelled}",
            job.state, job.attempt
        ),
        None => format!("{}{cancelled}", job.state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_shown_is_added_at_the_end() {
        assert_eq!(rest("", "abc"), Some("abc"));
        assert_eq!(rest("ab", "abc"), Some("c"));
        assert_eq!(rest("abc\n", "abc"), Some(""));
        assert_eq!(rest("abd", "abc"), None);
    }
}
