//! Batches by the official Python SDKs of OpenAI and Anthropic, with nothing changed but where
//! they ask and with which key (`tests/sdk`).

use std::{path::Path, process::Stdio, time::Duration};

use crate::harness::{Cluster, Mode, on_every_mode};

on_every_mode!(the_openai_sdk_runs_batches, the_anthropic_sdk_runs_batches,);

const ACCOUNTS: &str = r#"
[accounts.echo]
provider = "simulated"
models = ["echo"]
[accounts.slow]
provider = "simulated"
models = ["slow"]
latency = "20s"
[accounts.broken]
provider = "simulated"
models = ["broken"]
faults = { rejected = 1.0 }
"#;

async fn the_openai_sdk_runs_batches(mode: Mode) {
    run(mode, "openai_batches.py").await;
}

async fn the_anthropic_sdk_runs_batches(mode: Mode) {
    run(mode, "anthropic_batches.py").await;
}

/// Runs a script of flows, which says what went wrong.
async fn run(mode: Mode, script: &str) {
    let cluster = Cluster::start(mode, ACCOUNTS).await;
    let urls: Vec<&str> = cluster.apis().iter().map(|api| api.url.as_str()).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The one that `make test` names, or the one that it has installed.
    let python = std::env::var_os("SLUICE_TEST_SDK_PYTHON").map_or_else(
        || root.join(".sluice-dev/sdk-venv/bin/python"),
        std::path::PathBuf::from,
    );
    let flows = tokio::process::Command::new(python)
        .arg(root.join("tests/sdk").join(script))
        .env("FLOW_URLS", urls.join(","))
        .env("FLOW_KEY", &cluster.api().key)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(120), flows)
        .await
        .expect("the flows end in time")
        .expect("Python starts");
    assert!(
        output.status.success(),
        "{script}:\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
