//! From a request to the CLI's arguments and input. Nothing of a job's is an option by accident.

use std::io;

use serde_json::Value;
use sluice_shared::domain::{Outcome, Request};
use tokio::process::Command;

use super::{super::scratch::Scratch, MAX_INPUT_BYTES};

/// In place of the CLI's own system prompt, which describes a coding agent at length.
const SYSTEM: &str = "You are a helpful assistant. Answer the user's message.";
/// Calls of the model that a job with tools may make when it says nothing: each costs, and one
/// whose tool always fails would go on until its timeout.
const TURNS: u64 = 50;
const MOST_TURNS: u64 = 1000;

/// What of a request goes to the command line. The prompt itself never does, and neither does
/// the system prompt: both could be longer than a command line may be, and everyone on the
/// machine can read those.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Arguments {
    model: Option<String>,
    system: Option<String>,
    /// Names of tools; empty for none.
    tools: Vec<String>,
    turns: u64,
}

/// How a process gets its prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// One, which is all that is on its standard input.
    One,
    /// Any number, each a line of JSON.
    Lines,
}

impl Arguments {
    /// Parameters of the HTTP APIs that the CLI has no use for (`temperature`, `max_tokens`)
    /// are left out: the same job may run on accounts of all kinds.
    pub(super) fn read(
        request: &Request,
        default_model: Option<&str>,
        allow_tools: bool,
    ) -> Result<Self, Outcome> {
        let model = request
            .model
            .as_deref()
            .or(default_model)
            .map(str::to_owned);
        if let Some(model) = &model
            && (model.is_empty() || model.len() > 200 || model.contains(char::is_control))
        {
            return Err(Outcome::rejected(
                "invalid_model",
                "this is no model's name",
            ));
        }
        let tools = tools(request.params.get("tools"))?;
        if !tools.is_empty() && !allow_tools {
            return Err(Outcome::rejected(
                "tools_not_allowed",
                "the job asks for tools, and the account has no `allow_tools = true`",
            ));
        }
        let turns = match request.params.get("max_turns") {
            None => TURNS,
            Some(turns) => match turns.as_u64() {
                Some(turns) if (1..=MOST_TURNS).contains(&turns) => turns,
                _ => {
                    return Err(Outcome::rejected(
                        "invalid_params",
                        format!("max_turns must be a number from 1 to {MOST_TURNS}"),
                    ));
                }
            },
        };
        Ok(Self {
            model,
            system: request.system_text(),
            tools,
            turns,
        })
    }

    /// Whether a process that has run such a job is as it was before. Tools leave things behind:
    /// files, shells, a list of things to do.
    pub(super) fn leave_no_trace(&self) -> bool {
        self.tools.is_empty()
    }

    /// Puts them on `command`; a system prompt goes into a file in `scratch`.
    pub(super) fn apply(
        &self,
        command: &mut Command,
        scratch: &Scratch,
        feed: Feed,
    ) -> io::Result<()> {
        command.args([
            "-p",
            "--output-format",
            "stream-json",
            // Without it there is no stream of JSON lines.
            "--verbose",
            "--include-partial-messages",
            // No prompt and no answer stays in the config directory.
            "--no-session-persistence",
            // No servers, settings, hooks or skills of whoever uses this machine.
            "--strict-mcp-config",
            "--setting-sources",
            "",
        ]);
        match feed {
            Feed::One => command.arg("--disable-slash-commands"),
            // Its commands are on, because `/clear` is one; a prompt is none all the same, see
            // `inert`. Without tools there is nothing else that they bring.
            Feed::Lines => command.args(["--input-format", "stream-json"]),
        };
        // In one argument each, so that a value that begins with a dash is still a value.
        if let Some(model) = &self.model {
            command.arg(format!("--model={model}"));
        }
        match &self.system {
            Some(system) => {
                let path = scratch.file("system.txt");
                std::fs::write(&path, system)?;
                command.arg("--system-prompt-file").arg(path);
            }
            None => {
                command.args(["--system-prompt", SYSTEM]);
            }
        }
        let tools = self.tools.join(",");
        command.args(["--tools", &tools]);
        if self.tools.is_empty() {
            command.args(["--max-turns", "1"]);
        } else {
            // Nobody is there to be asked whether a tool may run: the account has said so.
            command.args(["--allowedTools", &tools]);
            command.arg("--max-turns").arg(self.turns.to_string());
        }
        Ok(())
    }
}

/// The tools that a job asks for: a list or a text with commas. Only plain names: a rule such as
/// `Bash(git *)` or an option has other characters.
fn tools(asked: Option<&Value>) -> Result<Vec<String>, Outcome> {
    let bad = || {
        Outcome::rejected(
            "invalid_params",
            "for the Claude Code CLI, tools is a list of its tools' names, such as [\"WebSearch\"]",
        )
    };
    let names: Vec<&str> = match asked {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(names)) => names.split(',').collect(),
        Some(Value::Array(names)) => names
            .iter()
            .map(Value::as_str)
            .collect::<Option<_>>()
            .ok_or_else(bad)?,
        Some(_) => return Err(bad()),
    };
    let names: Vec<String> = names
        .into_iter()
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(Into::into)
        .collect();
    let is_plain = |name: &String| {
        name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if names.iter().all(is_plain) {
        Ok(names)
    } else {
        Err(bad())
    }
}

/// `prompt` as input that is text and nothing else to the CLI.
///
/// The CLI takes a prompt whose very first character is a slash for one of its commands, also
/// with `--disable-slash-commands`: it answers `Unknown command` for a success, without a call.
/// With a line break before it, it is a prompt like any other.
pub(super) fn inert(prompt: String) -> Result<String, Outcome> {
    if prompt.trim().is_empty() {
        return Err(Outcome::rejected(
            "empty_prompt",
            "the Claude Code CLI takes no empty prompt",
        ));
    }
    if prompt.len() >= MAX_INPUT_BYTES {
        return Err(Outcome::rejected(
            "prompt_too_long",
            format!("the Claude Code CLI takes less than {MAX_INPUT_BYTES} bytes"),
        ));
    }
    Ok(if prompt.starts_with('/') {
        format!("\n{prompt}")
    } else {
        prompt
    })
}
