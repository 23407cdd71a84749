//! `sluice submit`: one prompt.

use std::{
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use sluice_shared::{
    api::{JobView, NewJob},
    domain::{JobId, Message, State},
};

use super::{JobOptions, Server, job_view};
use crate::{Exit, Failure, client::Client, home::Home, output};

/// Submit a prompt
///
/// Prints the job's id, or with --wait the answer. Exits with 1 when a job that was waited for did
/// not succeed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice submit 'Say hello.'
  sluice submit --wait --model claude-sonnet-5 --file question.txt
  git diff | sluice submit --wait --system 'Review this diff.'
  sluice submit --delay 1h --metadata team=search --param max_tokens=200 'Later.'")]
pub(crate) struct Args {
    /// The prompt; `-` or nothing reads standard input
    #[arg(allow_hyphen_values = false)]
    prompt: Option<String>,

    /// Read the prompt from a file
    #[arg(long, short, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,

    /// Read a conversation from a file: a JSON array of {"role": ..., "content": ...}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "file"])]
    messages: Option<PathBuf>,

    /// Wait for the end and print the answer
    #[arg(long, short)]
    wait: bool,

    /// Print JSON: the receipt, or with --wait the job
    #[arg(long)]
    json: bool,

    /// The same key and job give the same job again instead of a second one
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    #[command(flatten)]
    options: JobOptions,

    #[command(flatten)]
    server: Server,
}

pub(crate) async fn run(args: &Args, home: &Home) -> Result<Exit, Failure> {
    let client = args.server.client(home)?;
    let mut job = args.job()?;
    args.options.fill(&mut job);
    let receipt = client.submit(&job, args.idempotency_key.as_deref()).await?;
    if !args.wait {
        if args.json {
            output::json(&receipt)?;
        } else {
            output::line(&receipt.id.to_string())?;
        }
        return Ok(Exit::Done);
    }
    output::note(&format!("job {}", receipt.id));
    let Some(job) = wait(&client, receipt.id).await? else {
        return Ok(Exit::Interrupted);
    };
    if args.json {
        output::json(&job)?;
    } else {
        answer(&job)?;
    }
    Ok(Exit::when(job.state == State::Succeeded))
}

/// Waits for a job's end; `None` when Ctrl-C came first. The job goes on without us.
pub(crate) async fn wait(client: &Client, id: JobId) -> Result<Option<JobView>, Failure> {
    let notice = |error: &_| output::note(&format!("{error}; trying again"));
    tokio::select! {
        job = client.wait(id, notice) => Ok(Some(job?)),
        stopped = interrupted(id) => stopped.map(|_| None),
    }
}

/// Waits for Ctrl-C, and says how to come back to the job.
pub(crate) async fn interrupted(id: JobId) -> Result<Exit, Failure> {
    tokio::signal::ctrl_c()
        .await
        .map_err(Failure::io("signals"))?;
    output::note(&format!(
        "The job goes on. `sluice get {id} --wait` waits for it, `sluice cancel {id}` ends it."
    ));
    Ok(Exit::Interrupted)
}

/// Prints a job's answer, or what became of it instead.
pub(crate) fn answer(job: &JobView) -> Result<(), Failure> {
    if let Some(result) = &job.result {
        return output::text(&result.text);
    }
    tell_end(job);
    Ok(())
}

/// Says on standard error how a job ended that has no answer.
pub(crate) fn tell_end(job: &JobView) {
    let why = job.error.as_ref().map(job_view::describe_error);
    output::note(&match why {
        Some(why) => format!("the job is {}: {why}", job.state),
        None => format!("the job is {}", job.state),
    });
}

impl Args {
    fn job(&self) -> Result<NewJob, Failure> {
        if let Some(path) = &self.messages {
            let messages: Vec<Message> = serde_json::from_str(&read_file(path)?)
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            return Ok(NewJob {
                messages: Some(messages),
                ..NewJob::default()
            });
        }
        let prompt = match (&self.prompt, &self.file) {
            (Some(prompt), _) if prompt != "-" => prompt.clone(),
            (None, Some(path)) if path.as_os_str() != "-" => read_file(path)?,
            (None, None) if io::stdin().is_terminal() => {
                return Err(Failure::usage(
                    "there is no prompt; give it as an argument, by --file, or on standard input",
                ));
            }
            _ => {
                let mut prompt = String::new();
                io::stdin()
                    .read_to_string(&mut prompt)
                    .map_err(Failure::io("standard input"))?;
                prompt
            }
        };
        if prompt.trim().is_empty() {
            return Err(Failure::usage("the prompt is empty"));
        }
        Ok(NewJob {
            prompt: Some(prompt),
            ..NewJob::default()
        })
    }
}

fn read_file(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(Failure::io(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from([&["submit"], line].concat()).map(|line| line.args)
    }

    #[test]
    fn a_prompt_comes_from_one_place() {
        assert_eq!(
            parse(&["hi"]).unwrap().job().unwrap().prompt,
            Some("hi".into())
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.txt");
        std::fs::write(&file, "from a file\n").unwrap();
        let path = file.to_str().unwrap();
        let job = parse(&["--file", path]).unwrap().job().unwrap();
        assert_eq!(job.prompt, Some("from a file\n".into()));
        assert!(parse(&["hi", "--file", path]).is_err());
        assert!(parse(&["--messages", path, "--file", path]).is_err());
    }

    #[test]
    fn an_empty_prompt_is_refused_before_it_is_sent() {
        assert!(matches!(
            parse(&["  \n"]).unwrap().job(),
            Err(Failure::Usage(_))
        ));
    }

    #[test]
    fn a_conversation_is_read_from_json() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.json");
        std::fs::write(&file, r#"[{"role":"user","content":"hi"}]"#).unwrap();
        let args = parse(&["--messages", file.to_str().unwrap()]).unwrap();
        assert_eq!(args.job().unwrap().messages.unwrap()[0].content, "hi");
        std::fs::write(&file, r#"[{"role":"nobody","content":"hi"}]"#).unwrap();
        assert!(matches!(args.job(), Err(Failure::Usage(_))));
    }
}
