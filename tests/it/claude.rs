//! The real Claude CLI as a provider, talking to a stub on this machine.

use std::{fs, time::Duration};

use sluice_shared::{api::NewJob, domain::State};

use crate::{
    cli::{real_prompts, results, write_prompts},
    harness::{Cluster, bounded_by, eventually, given, processes_of, prompt},
    stub::{Play, Stub},
};

/// Each start of the CLI costs most of a second of CPU.
const LIMIT: Duration = Duration::from_secs(540);

fn config(stub: &Stub, claude: &str) -> String {
    format!(
        "[accounts.claude]\nprovider = \"claude-cli\"\nbin = \"{claude}\"\napi_key = \"sk-x\"\n\
         base_url = \"{}\"\nmax_concurrency = 4\ndefault_model = \"haiku\"\n",
        stub.url()
    )
}

#[tokio::test]
async fn two_hundred_prompts_come_back_through_the_real_cli() {
    bounded_by(LIMIT, async {
        let claude = given("SLUICE_TEST_CLAUDE_BIN");
        let stub = Stub::start(|ask| Play::Answer(format!("echo: {}", ask.prompt))).await;
        let cluster = Cluster::embedded(&config(&stub, &claude)).await;
        let prompts = real_prompts();
        let file = cluster.dir().join("prompts.jsonl");
        write_prompts(&file, &prompts);
        let output = cluster
            .cli(&["batch", file.to_str().unwrap()])
            .output()
            .await
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let results = results(&cluster.dir().join("prompts.results.jsonl"));
        let expected: Vec<String> = prompts
            .iter()
            .map(|prompt| format!("echo: {prompt}"))
            .collect();
        let texts: Vec<&str> = results
            .iter()
            .map(|result| result["text"].as_str().unwrap())
            .collect();
        assert_eq!(texts, expected);
        // The provider was asked for each once, with nothing read into it and nothing left out.
        let asked = stub.prompts();
        assert!(
            prompts.iter().all(|prompt| asked.get(prompt) == Some(&1)),
            "{asked:#?}"
        );
        assert_eq!(asked.len(), prompts.len());
    })
    .await;
}

#[tokio::test]
async fn nothing_in_a_prompt_is_a_command_or_a_path_to_the_cli() {
    bounded_by(LIMIT, async {
        let claude = given("SLUICE_TEST_CLAUDE_BIN");
        let stub = Stub::start(|ask| Play::Answer(format!("echo: {}", ask.prompt))).await;
        let cluster = Cluster::embedded(&config(&stub, &claude)).await;
        let canary = cluster.dir().join("canary.txt");
        fs::write(&canary, "the canary sings").unwrap();
        let path = canary.display().to_string();
        for text in [
            format!("@{path}"),
            format!("Read @{path} to me."),
            format!("/add-dir {}", cluster.dir().display()),
            "/help".to_owned(),
            "/clear".to_owned(),
            format!("!cat {path}"),
            "# remember this".to_owned(),
        ] {
            let job = cluster
                .run(&NewJob {
                    max_attempts: Some(1),
                    ..prompt(&text)
                })
                .await;
            assert_eq!(job.state, State::Succeeded, "{job:?}");
            assert_eq!(job.result.unwrap().text, format!("echo: {text}"));
        }
        assert!(!stub.bodies().contains("the canary sings"));
    })
    .await;
}

/// Kept processes that wait, and one in the middle of an answer: none outlives the worker, however
/// that ends.
#[tokio::test]
async fn no_process_of_the_cli_outlives_its_worker() {
    bounded_by(LIMIT, async {
        let claude = given("SLUICE_TEST_CLAUDE_BIN");
        let stub = Stub::start(|ask| match ask.prompt.as_str() {
            "hang" => Play::Slowly(600_000, String::new()),
            _ => Play::Answer("done".into()),
        })
        .await;
        let config = format!("{}warm_processes = 2\n", config(&stub, &claude));
        let mut cluster = Cluster::embedded(&config).await;
        let home = cluster.home();
        let clis = || {
            let mut found = processes_of(&home);
            found.retain(|(_, line)| line.contains("stream-json"));
            found.len()
        };
        let one_waits_and_one_hangs = async |cluster: &Cluster, asked: usize| {
            cluster.run(&prompt("first")).await;
            cluster.submit(&prompt("hang")).await;
            cluster.run(&prompt("second")).await;
            eventually("the model is asked", async || {
                let hangs = stub.prompts().get("hang").copied().unwrap_or_default();
                (hangs >= asked && clis() >= 2).then_some(())
            })
            .await;
        };
        one_waits_and_one_hangs(&cluster, 1).await;
        cluster.kill9("up");
        eventually("they are gone", async || (clis() == 0).then_some(())).await;

        cluster.start_again("up");
        cluster.until_up().await;
        one_waits_and_one_hangs(&cluster, 2).await;
        cluster.stop("up").await;
        eventually("they are gone", async || (clis() == 0).then_some(())).await;
    })
    .await;
}
