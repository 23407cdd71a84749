//! What of the Claude Code CLI's provider needs no real CLI: a script stands in for it.

use std::{os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};
use sluice_consumer_worker::provider::Provider;
use sluice_shared::domain::Request;

use crate::support::{build, run};

/// A program that stands in for the CLI: what it says is in `script`.
fn stand_in(dir: &Path, script: &str) -> Provider {
    let path = dir.join("claude");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    build(&format!(
        "provider = \"claude-cli\"\nbin = \"{}\"\nconfig_dir = \"{}\"",
        path.display(),
        dir.join("config").display()
    ))
}

#[tokio::test]
async fn a_cli_that_is_too_old_takes_the_account_out_until_it_is_updated() {
    let dir = tempfile::tempdir().unwrap();
    let provider = stand_in(dir.path(), "echo '2.1.207 (Claude Code)'");
    let ran = run(&provider, &Request::prompt("hi")).await;
    assert_eq!(ran.outcome.name(), "auth_failed");
    assert!(ran.line().contains("2.1.208 or newer"), "{}", ran.line());
    assert!(
        provider
            .check()
            .await
            .to_string()
            .contains("2.1.208 or newer")
    );
    // Updated in place: seen without a restart.
    stand_in(
        dir.path(),
        "[ $1 = --version ] && echo '2.2.0 (Claude Code)' || echo nonsense",
    );
    let ran = run(&provider, &Request::prompt("hi")).await;
    assert_eq!(ran.failure(), "no_result");
    stand_in(dir.path(), "echo 'welcome to something else'");
    let ran = run(&provider, &Request::prompt("hi")).await;
    assert!(
        ran.line()
            .contains("does not look like the Claude Code CLI"),
        "{}",
        ran.line()
    );
}

#[tokio::test]
async fn what_it_cannot_run_is_refused_before_it_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let provider = stand_in(dir.path(), "exit 1");
    let with = |params: Value| Request {
        params: params.as_object().unwrap().clone(),
        ..Request::prompt("hi")
    };
    let requests = [
        with(json!({"tools": ["Bash"]})),
        with(json!({"tools": "WebSearch,Read"})),
        with(json!({"tools": [{"name": "t"}]})),
        with(json!({"tools": "Bash(git *)"})),
        with(json!({"tools": "--dangerously-skip-permissions"})),
        with(json!({"max_turns": 0})),
        Request {
            model: Some("a\nb".into()),
            ..Request::prompt("hi")
        },
        Request::prompt(" \n"),
        Request::prompt("x".repeat(10_000_000)),
    ];
    let mut table = String::new();
    for request in requests {
        table += &format!("{}\n", run(&provider, &request).await.line());
    }
    insta::assert_snapshot!(table, @r#"
    rejected tools_not_allowed: the job asks for tools, and the account has no `allow_tools = true`
    rejected tools_not_allowed: the job asks for tools, and the account has no `allow_tools = true`
    rejected invalid_params: for the Claude Code CLI, tools is a list of its tools' names, such as ["WebSearch"]
    rejected invalid_params: for the Claude Code CLI, tools is a list of its tools' names, such as ["WebSearch"]
    rejected invalid_params: for the Claude Code CLI, tools is a list of its tools' names, such as ["WebSearch"]
    rejected invalid_params: max_turns must be a number from 1 to 1000
    rejected invalid_model: this is no model's name
    rejected empty_prompt: the Claude Code CLI takes no empty prompt
    rejected prompt_too_long: the Claude Code CLI takes less than 10000000 bytes
    "#);
}

#[tokio::test]
async fn errors_of_use_are_told_with_the_end_of_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let script = "[ $1 = --version ] && echo '2.2.0 (Claude Code)' && exit\n\
                  echo \"error: unknown option '--new' sk-ant-0123456789\" >&2; exit 1";
    let ran = run(&stand_in(dir.path(), script), &Request::prompt("hi")).await;
    insta::assert_snapshot!(ran.line(), @"failed no_result: claude ended with code 1 and gave no result: error: unknown option '--new' sk-[hidden]");
}
