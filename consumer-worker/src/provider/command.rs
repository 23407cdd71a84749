//! Any program: the prompt on its standard input, the answer on its standard output.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use sluice_shared::{
    config,
    domain::{Completion, Outcome},
};

use super::{
    Account, BuildError, Check, Prompt, Sink,
    answer::Answer,
    process::{self, Utf8},
    scratch::Scratch,
    secrets::Secrets,
    stop::Stop,
};

/// Of standard error, no more than this is told.
const STDERR_CHARS: usize = 700;

/// A program that answers prompts.
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, SecretString)>,
    max_output_bytes: usize,
    pub(super) secrets: Secrets,
}

impl Command {
    pub(super) fn build(
        account: &Account<'_>,
        settings: &config::Command,
    ) -> Result<Self, BuildError> {
        let name = settings
            .argv
            .first()
            .map(String::as_str)
            .unwrap_or_default();
        let program = process::find_program(name.as_ref())
            .map_err(|problem| account.error("argv", format!("{problem}; install it")))?;
        let mut env = Vec::new();
        for name in &settings.pass_env {
            let value = std::env::var(name).map_err(|_| {
                account.error(
                    "pass_env",
                    format!("{name} is not set; set it for the worker"),
                )
            })?;
            env.push((name.clone(), value.into()));
        }
        env.extend(settings.env.clone());
        Ok(Self {
            program,
            args: settings.argv.iter().skip(1).cloned().collect(),
            secrets: Secrets::new(env.iter().map(|(_, value)| value.clone())),
            env,
            max_output_bytes: account.max_output_bytes,
        })
    }

    pub(super) fn check(&self) -> Check {
        match process::find_program(&self.program) {
            Ok(path) => Check::Ok(format!("{} is there and executable", path.display())),
            Err(problem) => Check::problem(problem, "install it, or mend argv"),
        }
    }

    pub(super) async fn run(&self, prompt: Prompt<'_>, stop: Stop<'_>, sink: &Sink) -> Outcome {
        self.answer(prompt, stop, sink)
            .await
            .unwrap_or_else(|outcome| outcome)
    }

    async fn answer(
        &self,
        prompt: Prompt<'_>,
        stop: Stop<'_>,
        sink: &Sink,
    ) -> Result<Outcome, Outcome> {
        let scratch = Scratch::new().map_err(|error| process::no_scratch(&error))?;
        let mut command = process::command(&self.program, &scratch);
        command.args(&self.args);
        command.envs(
            self.env
                .iter()
                .map(|(name, value)| (name, value.expose_secret())),
        );
        let mut answer = Answer::new(self.max_output_bytes, sink);
        let mut utf8 = Utf8::default();
        let input = prompt.request.as_text().into_bytes();
        let exit = process::run(command, input, stop, |chunk| {
            answer.push(&utf8.decode(chunk))
        })
        .await?;
        if !exit.status.success() {
            let code = format!("exit_{}", exit.code());
            return Err(Outcome::failed(
                &code,
                stderr_end(&self.secrets, &exit.stderr),
            ));
        }
        answer.push(&utf8.finish())?;
        let text = answer.into_text();
        Ok(Outcome::Completed(Completion {
            text,
            ..Completion::default()
        }))
    }
}

/// The end of what a program wrote to standard error: there it says why it failed.
pub(super) fn stderr_end(secrets: &Secrets, stderr: &str) -> String {
    // Scrubbed while it is whole, for half a secret would not be found.
    let stderr = secrets.scrub(stderr.trim());
    match stderr.char_indices().rev().nth(STDERR_CHARS - 1) {
        Some((start, _)) if start > 0 => format!("…{}", &stderr[start..]),
        _ => stderr.into_owned(),
    }
}
