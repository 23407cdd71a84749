//! Real programs as providers: what they are given, and that nothing of them stays behind.

use std::{path::Path, time::Duration};

use sluice_consumer_worker::provider::{Provider, Sink};
use sluice_shared::domain::{Outcome, Request};
use tokio_util::sync::CancellationToken;

use crate::{
    stub::within,
    support::{MAX_OUTPUT, build, cancel_when, is_running, prompt, run, run_for, try_build, until},
};

/// An account whose program is this shell script. The shell is the program here; the provider
/// itself never uses one.
fn script(text: &str) -> Provider {
    build(&format!(
        "provider = \"command\"\nargv = [\"sh\", \"-c\", '''{text}''']"
    ))
}

/// Waits until none of these is running any more: what is killed needs a moment to be gone.
async fn are_gone(ids: &str) {
    let ids: Vec<u32> = ids
        .split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect();
    assert!(!ids.is_empty());
    within(until(|| !ids.iter().any(|id| is_running(*id)))).await;
}

/// A program with a child, a grandchild that has left the process group, and itself, all of
/// which would run on for long. It says their ids.
const FAMILY: &str = "sleep 1000 & echo $!; setsid sh -c \"sleep 1001 & echo \\$!; wait\" & \
                      echo $!; echo $$; wait";

fn is_family(text: &str) -> bool {
    text.matches('\n').count() == 4
}

#[tokio::test]
async fn the_prompt_goes_in_and_the_answer_comes_out() {
    let ran = run(
        &script("echo one; cat; echo two"),
        &Request::prompt("über\n"),
    )
    .await;
    assert_eq!(ran.text(), "one\nüber\ntwo\n");
    assert_eq!(ran.deltas.concat(), ran.text());
}

#[tokio::test]
async fn it_gets_an_empty_directory_and_an_environment_of_our_making() {
    let provider = build(
        "provider = \"command\"\n\
         argv = [\"sh\", \"-c\", \"ls -A . \\\"$HOME\\\" \\\"$TMPDIR\\\"; pwd; env | sort\"]\n\
         env = { GREETING = \"hello\" }\npass_env = [\"CARGO_PKG_NAME\"]",
    );
    let ran = run(&provider, &Request::prompt("hi")).await;
    let seen = ran.text().lines();
    let seen = seen.map(|line| match line.split_once('=') {
        Some((name @ ("PATH" | "LANG" | "SLUICE_RUN"), _)) => format!("{name}=..."),
        // The private directory has a new name each time.
        _ => match (line.find("/sluice-"), line.rfind('/')) {
            (Some(start), Some(end)) => {
                let start = line[..start].find('/').unwrap_or(start);
                format!("{}[private]{}", &line[..start], &line[end..])
            }
            _ => line.to_owned(),
        },
    });
    insta::assert_snapshot!(seen.collect::<Vec<_>>().join("\n"), @r#"
    .:

    [private]/home:

    [private]/tmp:
    [private]/work
    CARGO_PKG_NAME=sluice-consumer-worker
    GREETING=hello
    HOME=[private]/home
    LANG=...
    PATH=...
    PWD=[private]/work
    SLUICE_RUN=...
    TMPDIR=[private]/tmp
    "#);
}

#[tokio::test]
async fn the_private_directory_goes_with_the_program() {
    let ran = run(
        &script("pwd; echo x > kept; mkdir -p a/b; echo x > a/b/c"),
        &Request::prompt(""),
    )
    .await;
    assert!(
        !Path::new(ran.text().trim()).parent().unwrap().exists(),
        "{}",
        ran.text()
    );
}

#[tokio::test]
async fn how_it_ended_is_told_with_the_end_of_its_errors() {
    let provider = build(
        "provider = \"command\"\nenv = { TOKEN = \"hunter2-hunter2\" }\n\
         argv = [\"sh\", \"-c\", \"seq 1000 >&2; echo bad $TOKEN >&2; exit 7\"]",
    );
    let ran = run(&provider, &Request::prompt("hi")).await;
    let line = ran.line();
    assert!(line.starts_with("failed exit_7: …"), "{line}");
    assert!(
        line.ends_with("999 1000 bad [hidden]") && line.len() < 800,
        "{line}"
    );
    assert_eq!(
        run(&script("kill -9 $$"), &Request::prompt("hi"))
            .await
            .failure(),
        "exit_137"
    );
    assert!(!format!("{provider:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_program_that_does_not_read_is_no_deadlock() {
    let large = Request::prompt("x".repeat(8_000_000));
    assert_eq!(run(&script("echo done"), &large).await.text(), "done\n");
    // It fills its output while we fill its input.
    let ran = run(
        &script("head -c 90000 /dev/zero | tr '\\0' y; cat > /dev/null"),
        &large,
    )
    .await;
    assert_eq!(ran.text().len(), 90_000);
    // It reads nothing, and closes nothing, until it ends.
    let ran = run(
        &script("exec 0<&-; echo closed; sleep 0.2; echo done"),
        &large,
    )
    .await;
    assert_eq!(ran.text(), "closed\ndone\n");
}

#[tokio::test]
async fn an_endless_answer_is_ended() {
    let ran = run(&script("echo $$ >&2; exec yes"), &Request::prompt("hi")).await;
    assert_eq!(ran.failure(), "output_too_large");
    assert!(ran.deltas.concat().len() <= MAX_OUTPUT);
}

#[tokio::test]
async fn a_cancel_leaves_no_process_behind() {
    let ran = cancel_when(&script(FAMILY), &Request::prompt("hi"), is_family).await;
    assert_eq!(ran.outcome, Outcome::Cancelled);
    are_gone(&ran.deltas.concat()).await;
}

#[tokio::test]
async fn a_program_that_will_not_end_is_killed() {
    let stubborn = format!("trap '' TERM; {FAMILY}");
    let stubborn = build(&format!(
        "provider = \"command\"\nargv = [\"sh\", \"-c\", {}]",
        serde_json::to_string(&stubborn).unwrap()
    ));
    let ran = within(cancel_when(&stubborn, &Request::prompt("hi"), is_family)).await;
    assert_eq!(ran.outcome, Outcome::Cancelled);
    are_gone(&ran.deltas.concat()).await;
}

#[tokio::test]
async fn a_timeout_leaves_no_process_behind() {
    let ran = run_for(
        &script(FAMILY),
        &Request::prompt("hi"),
        Duration::from_secs(2),
    )
    .await;
    assert_eq!(ran.failure(), "timeout");
    are_gone(&ran.deltas.concat()).await;
}

#[tokio::test]
async fn a_dropped_run_leaves_no_process_behind() {
    let provider = script(FAMILY);
    let (sink, mut received) = Sink::new();
    let request = Request::prompt("hi");
    let cancel = CancellationToken::new();
    let mut seen = String::new();
    {
        let mut running = Box::pin(provider.run(prompt(&request, Duration::MAX), &cancel, &sink));
        while !is_family(&seen) {
            tokio::select! {
                outcome = &mut running => panic!("it ended: {outcome:?}"),
                delta = received.recv() => seen += &delta.unwrap(),
            }
        }
    }
    are_gone(&seen).await;
}

#[tokio::test]
async fn a_child_that_holds_the_output_open_holds_up_nothing() {
    let ran = within(run(&script("sleep 1000 & echo $!"), &Request::prompt("hi"))).await;
    are_gone(ran.text()).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_the_accounts_trouble() {
    let error = try_build(
        "provider = \"command\"\nargv = [\"no-such-program\"]",
        Path::new("/"),
    );
    let error = error.map(drop).unwrap_err().to_string();
    assert_eq!(
        error,
        "accounts.main.argv: there is no program `no-such-program` on PATH; install it"
    );
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let provider = build(&format!(
        "provider = \"command\"\nargv = [\"{}\"]",
        program.display()
    ));
    assert!(provider.check().await.is_ok());
    std::fs::remove_file(&program).unwrap();
    assert!(!provider.check().await.is_ok());
    // The job is put back and the account rests: someone may just be updating the program.
    let ran = run(&provider, &Request::prompt("hi")).await;
    assert_eq!(ran.outcome.name(), "overloaded", "{}", ran.line());
}
