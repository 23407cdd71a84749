//! What the command line shows while it happens: the text of a job as it comes.

use std::process::Stdio;

use serde_json::Value;
use sluice_shared::{
    api::JobView,
    domain::{JobId, State},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
};

use crate::{
    cli::{run, said},
    harness::{Cluster, Mode, eventually, on_every_mode, prompt},
};

on_every_mode!(
    a_watch_shows_the_text_while_it_comes,
    a_watch_outlives_its_connection,
);

/// Says the prompt, piece by piece.
const SLOW: &str = "[accounts.slow]\nprovider = \"simulated\"\nlatency = \"4s\"\n";

fn story() -> String {
    let words: Vec<String> = (0..60).map(|n| format!("word{n}")).collect();
    words.join(" ")
}

fn start(cluster: &Cluster, arguments: &[&str]) -> Child {
    cluster
        .cli(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn a_watch_shows_the_text_while_it_comes(mode: Mode) {
    let cluster = Cluster::start(mode, SLOW).await;
    let id = cluster.submit(&prompt(story())).await;
    let text_id = id.to_string();
    let mut watch = start(&cluster, &["watch", &text_id]);
    let mut begin = [0; 5];
    let stdout = watch.stdout.as_mut().unwrap();
    stdout.read_exact(&mut begin).await.unwrap();
    assert_eq!(cluster.job(id).await.state, State::Running, "it is live");
    let output = watch.wait_with_output().await.unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let rest = said(&output, 0, &["watch"]);
    let shown = String::from_utf8(begin.to_vec()).unwrap() + &rest;
    assert_eq!(shown, story() + "\n");
    assert!(
        stderr.contains("running on slow (attempt 1)") && !stderr.contains("void"),
        "{stderr}"
    );
    // Who comes late gets it all.
    assert_eq!(run(&cluster, 0, &["watch", &text_id]).await, shown);

    let waiting = cluster.submit(&prompt(story())).await;
    let watch = start(&cluster, &["watch", &waiting.to_string()]);
    cluster.api().cancel(waiting).await;
    let output = watch.wait_with_output().await.unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    said(&output, 1, &["watch"]);
    assert!(stderr.contains("the job is cancelled"), "{stderr}");
    run(&cluster, 1, &["watch", &JobId::generate().to_string()]).await;
    run(&cluster, 2, &["watch", "not-an-id"]).await;
}

/// The next event that `watch --json` prints.
async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<Value> {
    let line = lines.next_line().await.unwrap()?;
    Some(serde_json::from_str(&line).unwrap())
}

async fn a_watch_outlives_its_connection(mode: Mode) {
    let mut cluster = Cluster::start(mode, SLOW).await;
    let id = cluster.submit(&prompt(story())).await;
    let text_id = id.to_string();
    let plain = start(&cluster, &["watch", &text_id]);
    let mut json = start(&cluster, &["watch", "--json", &text_id]);
    let mut lines = BufReader::new(json.stdout.take().unwrap()).lines();
    let (mut texts, mut voids) = (0, 0);
    let (mut attempt, mut text) = (1, String::new());
    let mut take = |event: &Value| match event["event"].as_str().unwrap() {
        "text" => {
            assert_eq!(event["attempt"], attempt, "{event}");
            text += event["text"].as_str().unwrap();
        }
        "void" => {
            assert_eq!(event["attempt"], attempt, "{event}");
            attempt += 1;
            voids += 1;
            text.clear();
        }
        _ => {}
    };
    while texts < 4 {
        let event = next(&mut lines).await.expect("the text goes on");
        texts += usize::from(event["event"] == "text");
        take(&event);
    }
    // It serves both watches, and in the embedded mode it runs the job, too.
    let server = cluster.servers()[0].clone();
    cluster.kill9(&server);
    cluster.start_again(&server);
    let mut last = Value::Null;
    while let Some(event) = next(&mut lines).await {
        take(&event);
        last = event;
    }
    assert_eq!(last["event"], "end");
    let job: JobView = serde_json::from_value(last["job"].clone()).unwrap();
    assert_eq!(job.state, State::Succeeded);
    assert_eq!(text, story(), "the text of the last attempt is whole");
    assert_eq!(voids, usize::from(mode == Mode::Embedded));
    let status = eventually("the watch ends", async || json.try_wait().unwrap()).await;
    assert!(status.success());

    let output = plain.wait_with_output().await.unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let shown = said(&output, 0, &["watch"]);
    if mode == Mode::Embedded {
        let (void, answer) = shown.split_once('\n').unwrap();
        assert!(story().starts_with(void) && !void.is_empty(), "{shown}");
        assert_eq!(answer, story() + "\n");
        assert!(
            stderr.contains("The text of attempt 1 is void."),
            "{stderr}"
        );
    } else {
        assert_eq!(shown, story() + "\n");
    }
    assert!(stderr.contains("trying again"), "{stderr}");
}
