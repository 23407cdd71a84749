//! Batches that the server keeps, from the command line.

use std::{fs, path::Path, process::Stdio};

use serde_json::json;
use sluice_shared::{
    api::{BatchResult, BatchState, BatchView},
    domain::BatchId,
};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    cli::{run, said},
    harness::{Cluster, Mode, eventually, on_every_mode},
    promises::TWO_ACCOUNTS,
};

on_every_mode!(
    a_batch_is_submitted_waited_for_and_read,
    results_are_read_on_after_a_lost_connection,
    a_batch_is_cancelled,
);

fn write_lines(file: &Path, count: usize, wrong: &str) {
    let line = |n: usize| json!({ "prompt": format!("line {n}") }).to_string() + "\n";
    let lines: String = (1..=count).map(line).collect();
    fs::write(file, lines + wrong).unwrap();
}

fn parse(text: &str) -> Vec<BatchResult> {
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn check_lines(results: &[BatchResult]) {
    for (result, line) in results.iter().zip(1..) {
        assert_eq!(result.line, line);
        let text = result.result.as_ref().map(|result| result.text.as_str());
        assert_eq!(text, Some(format!("line {line}").as_str()), "{result:?}");
    }
}

/// What a command says on standard error, which must end with this code.
async fn complaint(cluster: &Cluster, code: i32, arguments: &[&str]) -> String {
    let output = cluster.cli(arguments).output().await.unwrap();
    said(&output, code, arguments);
    String::from_utf8(output.stderr).unwrap()
}

async fn a_batch_is_submitted_waited_for_and_read(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let file = cluster.dir().join("prompts.jsonl");
    let path = file.to_str().unwrap();
    write_lines(&file, 300, "");
    let id = run(
        &cluster,
        0,
        &["batches", "submit", path, "--name", "nightly"],
    )
    .await;
    let id = id.trim();
    let out = cluster.dir().join("results.jsonl");
    let line = ["batches", "results", id, "--wait", "--out"];
    run(&cluster, 0, &[&line[..], &[out.to_str().unwrap()]].concat()).await;
    let text = fs::read_to_string(&out).unwrap();
    let results = parse(&text);
    assert_eq!(results.len(), 300);
    check_lines(&results);
    assert_eq!(run(&cluster, 0, &["batches", "results", id]).await, text);
    let shown = run(&cluster, 0, &["batches", "show", id]).await;
    for part in [id, "nightly", "300 of 300 ended: 300 succeeded"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }

    let submit = ["batches", "submit", path];
    write_lines(&file, 2, "{\"no\":\"job\"}\n");
    let refused = complaint(&cluster, 1, &submit).await;
    assert!(refused.contains("line 3"), "{refused}");
    let partial = [&submit[..], &["--partial", "--wait", "--json"]].concat();
    let batch = run(&cluster, 1, &partial).await;
    let batch: BatchView = serde_json::from_str(&batch).unwrap();
    assert_eq!(
        (batch.state, batch.counts.succeeded, batch.rejected),
        (BatchState::Ended, 2, 1)
    );
    let again = complaint(&cluster, 0, &[&submit[..], &["--partial"]].concat()).await;
    assert!(again.contains("line 3"), "{again}");
    let both = batch.id.to_string();
    let results = parse(&run(&cluster, 0, &["batches", "results", &both]).await);
    assert!(results.len() == 3 && results[2].error.is_some());
    run(&cluster, 1, &["batches", "results", &both, "--wait"]).await;

    // The answer comes while the file is still being sent.
    fs::write(&file, "{\"no\":\"job\"}\n".repeat(2_000_000)).unwrap();
    let refused = complaint(&cluster, 1, &submit).await;
    assert!(refused.contains("invalid_batch"), "{refused}");

    let listed = run(&cluster, 0, &["batches", "list", "--all", "--json"]).await;
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(run(&cluster, 0, &["batches"]).await.contains("nightly"));
    let few = complaint(&cluster, 0, &["batches", "list", "-n", "1"]).await;
    assert!(few.contains("--cursor"), "{few}");
    let none = BatchId::generate().to_string();
    for action in ["show", "results", "cancel"] {
        run(&cluster, 1, &["batches", action, &none]).await;
        run(&cluster, 2, &["batches", action, "not-an-id"]).await;
    }
    run(&cluster, 1, &["batches", "submit", "not-there.jsonl"]).await;
}

async fn results_are_read_on_after_a_lost_connection(mode: Mode) {
    let slow =
        "[accounts.slow]\nprovider = \"simulated\"\nlatency = \"400ms\"\nmax_concurrency = 10";
    let mut cluster = Cluster::start(mode, slow).await;
    let file = cluster.dir().join("prompts.jsonl");
    write_lines(&file, 150, "");
    let id = run(&cluster, 0, &["batches", "submit", file.to_str().unwrap()]).await;
    let id = id.trim();
    let early = complaint(&cluster, 1, &["batches", "results", id]).await;
    assert!(early.contains("has not ended"), "{early}");
    let mut reading = cluster
        .cli(&["batches", "results", id, "--wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(reading.stdout.take().unwrap()).lines();
    let mut text = String::new();
    for _ in 0..25 {
        let line = lines.next_line().await.unwrap().expect("more results");
        text += &(line + "\n");
    }
    let server = cluster.servers()[0].clone();
    cluster.kill9(&server);
    cluster.start_again(&server);
    while let Some(line) = lines.next_line().await.unwrap() {
        text += &(line + "\n");
    }
    let results = parse(&text);
    assert_eq!(results.len(), 150);
    check_lines(&results);
    let output = reading.wait_with_output().await.unwrap();
    said(&output, 0, &["results"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("trying again"), "{stderr}");
}

async fn a_batch_is_cancelled(mode: Mode) {
    let slow = "[accounts.slow]\nprovider = \"simulated\"\nlatency = \"30s\"";
    let cluster = Cluster::start(mode, slow).await;
    let file = cluster.dir().join("prompts.jsonl");
    write_lines(&file, 50, "");
    let mut waiting = cluster
        .cli(&["batches", "submit", file.to_str().unwrap(), "--wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut notes = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let note = notes.next_line().await.unwrap().unwrap();
    let id = note.strip_prefix("batch ").unwrap();
    let cancelled = run(&cluster, 0, &["batches", "cancel", id]).await;
    assert!(cancelled.contains("cancelled"), "{cancelled}");
    let output = waiting.wait_with_output().await.unwrap();
    let shown = said(&output, 1, &["submit", "--wait"]);
    assert!(shown.contains("50 cancelled"), "{shown}");
    eventually("a batch that has ended cannot be cancelled", async || {
        let output = cluster
            .cli(&["batches", "cancel", id])
            .output()
            .await
            .unwrap();
        (output.status.code() == Some(1)).then_some(())
    })
    .await;
}
