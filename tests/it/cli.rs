//! The binary as its users run it.

use std::{
    collections::HashSet,
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use sluice_shared::{
    api::{JobView, Receipt},
    domain::State,
};
use tokio::io::AsyncWriteExt;

use crate::harness::{Cluster, bounded, eventually, on_every_mode, prompt};

on_every_mode!(
    a_file_of_prompts_comes_back_as_if_run_by_hand,
    an_interrupted_batch_goes_on
);

const ECHO: &str = "[accounts.echo]\nprovider = \"simulated\"\ntags = [\"fast\"]\n";

/// What a command says, which must end with this code.
pub(crate) async fn run(cluster: &Cluster, code: i32, arguments: &[&str]) -> String {
    let output = cluster.cli(arguments).output().await.unwrap();
    said(&output, code, arguments)
}

pub(crate) fn said(output: &Output, code: i32, arguments: &[&str]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn a_prompt_is_submitted_and_its_answer_printed() {
    bounded(async {
        let cluster = Cluster::embedded(ECHO).await;
        assert_eq!(
            run(&cluster, 0, &["submit", "--wait", "Say hello."]).await,
            "Say hello.\n"
        );
        let job: JobView = serde_json::from_str(
            &run(
                &cluster,
                0,
                &["submit", "--wait", "--json", "--tag", "fast", "Say it."],
            )
            .await,
        )
        .unwrap();
        assert_eq!(
            (job.state, job.lane.as_str()),
            (State::Succeeded, "tag=fast")
        );

        let file = cluster.dir().join("prompt.txt");
        fs::write(&file, "from a file").unwrap();
        let answer = run(
            &cluster,
            0,
            &["submit", "--wait", "--file", file.to_str().unwrap()],
        )
        .await;
        assert_eq!(answer, "from a file\n");

        let mut child = cluster.cli(&["submit", "--wait"]);
        let mut child = child
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin
            .write_all("from a pipe: 世界".as_bytes())
            .await
            .unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(said(&output, 0, &["submit"]), "from a pipe: 世界\n");

        run(&cluster, 2, &["submit", "--no-such-flag"]).await;
        run(&cluster, 1, &["submit", "--tag", "unheard-of", "x"]).await;
    })
    .await;
}

#[tokio::test]
async fn jobs_are_shown_listed_cancelled_and_retried() {
    bounded(async {
        let cluster = Cluster::embedded(ECHO).await;
        let id = run(&cluster, 0, &["submit", "first"])
            .await
            .trim()
            .to_owned();
        assert_eq!(
            run(&cluster, 0, &["get", "--wait", "--text", &id]).await,
            "first\n"
        );
        let shown = run(&cluster, 0, &["get", &id]).await;
        assert!(
            shown.contains(&id) && shown.contains("succeeded"),
            "{shown}"
        );

        let later = run(&cluster, 0, &["submit", "--delay", "1h", "later"]).await;
        let later = later.trim();
        let listed = run(&cluster, 0, &["list", "--json", "--state", "queued"]).await;
        let jobs: Vec<JobView> = listed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs[0].id.to_string(), later);
        assert!(run(&cluster, 0, &["list"]).await.lines().count() >= 3);

        assert!(
            run(&cluster, 0, &["cancel", later])
                .await
                .contains("cancelled")
        );
        run(&cluster, 1, &["cancel", later]).await;
        let again = run(&cluster, 0, &["retry", &id]).await;
        let again = run(&cluster, 0, &["get", "--wait", "--json", again.trim()]).await;
        let again: JobView = serde_json::from_str(&again).unwrap();
        assert_eq!(again.retry_of.unwrap().to_string(), id);
        run(&cluster, 2, &["get", "not-an-id"]).await;
        run(
            &cluster,
            1,
            &["get", "0193a3f0-7c1e-7d32-b5a1-1f3c8e0b9d42"],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn accounts_and_keys_are_steered() {
    bounded(async {
        let cluster = Cluster::embedded(ECHO).await;
        assert!(run(&cluster, 0, &["accounts"]).await.contains("echo"));
        run(&cluster, 0, &["accounts", "pause", "echo"]).await;
        assert!(run(&cluster, 0, &["accounts"]).await.contains("paused"));
        run(&cluster, 0, &["accounts", "resume", "echo"]).await;
        let made = run(&cluster, 0, &["keys", "create", "ci", "--scope", "submit"]).await;
        assert!(made.contains("sluice_"), "{made}");
        assert!(run(&cluster, 0, &["keys", "list"]).await.contains("ci"));
        assert!(run(&cluster, 0, &["health"]).await.contains("ok"));
    })
    .await;
}

#[tokio::test]
async fn a_batch_is_planned_and_a_quota_set() {
    bounded(async {
        let cluster = Cluster::embedded(ECHO).await;
        let plan = run(&cluster, 0, &["plan", "100", "--per-hour", "500"]).await;
        for part in ["echo", "100 jobs", "done in", "500 jobs an hour take"] {
            assert!(plan.contains(part), "{part} is not in\n{plan}");
        }
        run(
            &cluster,
            0,
            &["keys", "create", "few", "--max-running", "2"],
        )
        .await;
        let list = run(&cluster, 0, &["keys", "list", "--json"]).await;
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let few = &list["keys"][0];
        assert_eq!(few["quota"], serde_json::json!({ "max_running": 2 }));
        let id = few["id"].as_str().unwrap();
        let line = ["keys", "set", id, "--weight", "3", "--max-running", "none"];
        run(&cluster, 0, &line).await;
        let list = run(&cluster, 0, &["keys"]).await;
        assert!(
            list.contains("few") && !list.contains("2 running"),
            "{list}"
        );
    })
    .await;
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong_and_says_how_to_mend_it() {
    bounded(async {
        let cluster = Cluster::embedded(ECHO).await;
        let well = run(&cluster, 0, &["doctor"]).await;
        assert!(well.contains("echo"), "{well}");
        let broken = cluster.dir().join("broken.toml");
        fs::write(
            &broken,
            "[accounts.tool]\nprovider = \"command\"\nargv = [\"no-such-tool\"]\n",
        )
        .unwrap();
        let ill = run(
            &cluster,
            1,
            &["doctor", "--config", broken.to_str().unwrap()],
        )
        .await;
        assert!(
            ill.contains("no-such-tool") && ill.contains("install"),
            "{ill}"
        );
    })
    .await;
}

#[tokio::test]
async fn without_a_server_the_client_says_how_to_start_one() {
    bounded(async {
        let mut cluster = Cluster::embedded(ECHO).await;
        cluster.stop("up").await;
        let output = cluster.cli(&["submit", "x"]).output().await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && stderr.contains("sluice up"),
            "{stderr}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_second_server_is_kept_from_the_data_of_the_first() {
    bounded(async {
        let cluster = Cluster::embedded(ECHO).await;
        let output = cluster
            .cli(&["up", "--listen", "127.0.0.1:0"])
            .output()
            .await
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && stderr.contains("in use"),
            "{stderr}"
        );
        assert_eq!(
            cluster.run(&prompt("unharmed")).await.state,
            State::Succeeded
        );
    })
    .await;
}

#[tokio::test]
async fn a_mistake_in_the_configuration_is_named() {
    bounded(async {
        let cluster = Cluster::embedded(ECHO).await;
        let file = cluster.dir().join("mistaken.toml");
        for (text, named) in [
            ("[api]\nlisten_on = \"x\"", "listen_on"),
            ("[accounts.a]\nprovider = \"magic\"", "magic"),
            (
                "[accounts.a]\nprovider = \"simulated\"\nlatency = \"soon\"",
                "latency",
            ),
            ("not toml at all", "mistaken.toml"),
        ] {
            fs::write(&file, text).unwrap();
            let mut command = cluster.cli(&["up", "--config", file.to_str().unwrap()]);
            let output = command.output().await.unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(
                !output.status.success() && stderr.contains(named),
                "{text}: {stderr}"
            );
        }
        let output = cluster
            .cli(&["up", "--config", "not-there.toml"])
            .output()
            .await
            .unwrap();
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .contains("not-there.toml")
        );
    })
    .await;
}

#[tokio::test]
async fn every_shell_gets_its_completions() {
    bounded(async {
        let cluster = Cluster::embedded(ECHO).await;
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = run(&cluster, 0, &["completions", shell]).await;
            assert!(
                script.contains("sluice") && script.contains("batch"),
                "{shell}"
            );
        }
        let script = run(&cluster, 0, &["completions", "bash"]).await;
        let mut bash = Command::new("bash")
            .arg("-n")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        bash.stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        assert!(bash.wait().unwrap().success());
    })
    .await;
}

/// Prompts as people have them: short and long, in several scripts, with what trips up shells,
/// JSON and slash commands.
pub(crate) fn real_prompts() -> Vec<String> {
    let openings = [
        "Summarise this paragraph in one sentence:",
        "/review the following change, please:",
        "Translate into German, keeping the tone:",
        "What does `awk '{print $2}' \"$file\"` do?",
        "Extract every date from this text as JSON:",
        "@/etc/hostname is a path; explain what such files hold.",
        "Réécrivez ce texte plus simplement :",
        "次の文章を要約してください:",
        "Is this review positive or negative? Answer in one word.",
        "-- a prompt that begins like a flag --help",
    ];
    let bodies = [
        "The gate was opened at dawn, and by noon the lower canal had risen two feet.",
        "Deploy on 2026-11-23; roll back if p99 > 250 ms.\n\nOwner: ops.\tTicket: #4711",
        "\"Quotes\", 'apostrophes', \\backslashes\\, ${variables} and $(commands).",
        "Das Wehr wurde geöffnet — größere Schäden gab es nicht. Kosten: 1.234,56 €",
    ];
    let prompt = |number: usize| {
        let body = bodies[number / openings.len() % bodies.len()];
        let times = 1 + number % 7 * (number % 3);
        let text = vec![body; times].join("\n");
        format!("{} {text} ({number})", openings[number % openings.len()])
    };
    (0..200).map(prompt).collect()
}

pub(crate) fn write_prompts(file: &Path, prompts: &[String]) {
    let lines: Vec<String> = prompts
        .iter()
        .map(|prompt| json!({ "prompt": prompt }).to_string())
        .collect();
    fs::write(file, lines.join("\n") + "\n").unwrap();
}

pub(crate) fn results(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What the program says to this prompt when it is run by hand.
fn by_hand(argv: &[&str], prompt: &str) -> String {
    let mut command = Command::new(argv[0]);
    let command = command.args(&argv[1..]).env_clear().env("LANG", "C.UTF-8");
    let mut child = command
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(prompt.as_bytes())
        .unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

async fn a_file_of_prompts_comes_back_as_if_run_by_hand(mode: crate::harness::Mode) {
    let config = r#"
[accounts.upper]
provider = "command"
argv = ["tr", "a-z", "A-Z"]
tags = ["upper"]
[accounts.count]
provider = "command"
argv = ["wc", "-w"]
tags = ["count"]
"#;
    let cluster = Cluster::start(mode, config).await;
    let prompts = real_prompts();
    for (tag, argv) in [
        ("upper", &["tr", "a-z", "A-Z"][..]),
        ("count", &["wc", "-w"]),
    ] {
        let file = cluster.dir().join(format!("{tag}.jsonl"));
        write_prompts(&file, &prompts);
        run(
            &cluster,
            0,
            &["batch", "--tag", tag, file.to_str().unwrap()],
        )
        .await;
        let results = results(&cluster.dir().join(format!("{tag}.results.jsonl")));
        assert_eq!(results.len(), prompts.len());
        for (number, (prompt, result)) in prompts.iter().zip(&results).enumerate() {
            assert_eq!(result["line"], number + 1);
            assert_eq!(result["text"], by_hand(argv, prompt), "{prompt}");
        }
    }
    assert_eq!(cluster.api().list_all("limit=200").await.len(), 400);
}

async fn an_interrupted_batch_goes_on(mode: crate::harness::Mode) {
    let config =
        "[accounts.slow]\nprovider = \"simulated\"\nlatency = \"50ms\"\nmax_concurrency = 2";
    let cluster = Cluster::start(mode, config).await;
    let prompts = real_prompts();
    let file = cluster.dir().join("prompts.jsonl");
    write_prompts(&file, &prompts);
    let path = file.to_str().unwrap();
    let finished = async || {
        cluster
            .api()
            .list_all("limit=200&state=succeeded")
            .await
            .len()
    };
    for (round, stop_at) in [20, 60, 110].into_iter().enumerate() {
        let mut command = cluster.cli(&["batch", "--chunk", "40", path]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let what = format!("{stop_at} prompts of the batch are done");
        eventually(&what, async || (finished().await >= stop_at).then_some(())).await;
        kill(
            Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        let status = child.wait().await.unwrap();
        assert_eq!(status.code(), Some(130), "round {round}");
        assert!(!cluster.dir().join("prompts.results.jsonl").exists());
    }
    run(&cluster, 0, &["batch", "--chunk", "40", path]).await;
    let results = results(&cluster.dir().join("prompts.results.jsonl"));
    let texts: Vec<&str> = results
        .iter()
        .map(|result| result["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, prompts);
    let jobs = cluster.api().list_all("limit=200").await;
    assert_eq!(jobs.len(), prompts.len(), "nothing was submitted twice");
    let ids: HashSet<&str> = results
        .iter()
        .map(|result| result["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), prompts.len());
    // Once more: it is done, and says so without running anything.
    run(&cluster, 0, &["batch", path]).await;
    assert_eq!(
        cluster.api().list_all("limit=200").await.len(),
        prompts.len()
    );
    let receipt: Receipt = cluster.api().submit(&prompt("and it still works")).await;
    assert_eq!(cluster.wait(receipt.id).await.state, State::Succeeded);
}
