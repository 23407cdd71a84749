//! The official Python SDKs of OpenAI and Anthropic, with nothing changed but where they ask and
//! with which key (`tests/sdk`).

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};

use crate::{
    harness::{Client, Cluster, Mode, on_every_mode},
    stub::{Play, Stub},
};

on_every_mode!(
    the_openai_sdk_runs_unchanged,
    the_anthropic_sdk_runs_unchanged,
);

async fn the_openai_sdk_runs_unchanged(mode: Mode) {
    run(mode, "openai_flows.py").await;
}

async fn the_anthropic_sdk_runs_unchanged(mode: Mode) {
    run(mode, "anthropic_flows.py").await;
}

fn config(stub: &Stub) -> String {
    let url = stub.url();
    format!(
        r#"
[accounts.echo]
provider = "simulated"
models = ["echo"]
[accounts.writer]
provider = "simulated"
models = ["writer"]
latency = "600ms"
tokens = 40
[accounts.slow]
provider = "simulated"
models = ["slow"]
latency = "20s"
[accounts.slow-here]
provider = "simulated"
models = ["slow"]
tags = ["only-here"]
latency = "20s"
[accounts.broken]
provider = "simulated"
models = ["broken"]
faults = {{ rejected = 1.0 }}
[accounts.gpt]
provider = "openai"
models = ["gpt"]
base_url = "{url}"
[accounts.claude]
provider = "anthropic"
models = ["claude"]
base_url = "{url}"
api_key = "sk-x"
"#
    )
}

/// Runs a script of flows, which says what went wrong.
async fn run(mode: Mode, script: &str) {
    let stub = Stub::start(|ask| Play::Answer(format!("echo: {}", ask.prompt))).await;
    let cluster = Cluster::start(mode, &config(&stub)).await;
    let urls: Vec<&str> = cluster.apis().iter().map(|api| api.url.as_str()).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let flows = tokio::process::Command::new(python(root))
        .arg(root.join("tests/sdk").join(script))
        .env("FLOW_URLS", urls.join(","))
        .env("FLOW_KEY", &cluster.api().key)
        .env("FLOW_HASTY_KEY", hasty_key(cluster.api()).await)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(120), flows)
        .await
        .expect("the flows end in time")
        .expect("Python starts");
    eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "{script}:\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A key that may make one request in a minute.
async fn hasty_key(api: &Client) -> String {
    let key = json!({
        "name": "hasty",
        "scopes": ["submit"],
        "quota": { "requests_per_minute": 1 },
    });
    let created: Value = api.post("/api/keys", &key).await.is(201);
    created["key"].as_str().unwrap().to_owned()
}

/// A Python that has the SDKs: the one that `make test` names, or the one that it has installed.
fn python(root: &Path) -> std::path::PathBuf {
    std::env::var_os("SLUICE_TEST_SDK_PYTHON").map_or_else(
        || root.join(".sluice-dev/sdk-venv/bin/python"),
        std::path::PathBuf::from,
    )
}
