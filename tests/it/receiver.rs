//! Who receives webhooks, on this machine, and the public libraries that verify them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use sluice_shared::domain::{JobId, State};
use tokio::{io::AsyncWriteExt, net::TcpListener, process::Command, task::JoinSet};

use crate::harness::{Client, eventually};

/// Lets webhooks go to this machine, and tries soon again.
pub(crate) const SETTINGS: &str = r#"
[webhooks]
allow_networks = ["127.0.0.0/8"]
timeout = "5s"
schedule = ["50ms", "100ms", "200ms", "200ms", "500ms", "500ms", "1s", "1s", "1s", "1s", "2s", "2s", "2s", "2s"]
"#;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    /// The status that it was answered with.
    pub(crate) status: u16,
    /// How the job was that it tells of when it came, for a receiver that asks.
    pub(crate) job_was: Option<State>,
}

impl Got {
    pub(crate) fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The job that it tells of.
    pub(crate) fn job(&self) -> JobId {
        self.event()["data"]["id"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    pub(crate) fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }
}

type Answer = Box<dyn Fn(usize) -> u16 + Send + Sync>;

/// A receiver that runs until it is dropped.
pub(crate) struct Receiver {
    pub(crate) url: String,
    book: Arc<Book>,
    _server: JoinSet<()>,
}

struct Book {
    answer: Answer,
    ask: Option<Client>,
    got: Mutex<Vec<Got>>,
}

impl Receiver {
    /// One that answers its requests, counted from 0, with these statuses.
    pub(crate) async fn start(answer: impl Fn(usize) -> u16 + Send + Sync + 'static) -> Self {
        Self::with(answer, None).await
    }

    /// One that asks an API how each job is before it takes what it is told of it.
    pub(crate) async fn asking(api: &Client) -> Self {
        Self::with(|_| 204, Some(api.clone())).await
    }

    async fn with(
        answer: impl Fn(usize) -> u16 + Send + Sync + 'static,
        ask: Option<Client>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let book = Arc::new(Book {
            answer: Box::new(answer),
            ask,
            got: Mutex::default(),
        });
        let router = Router::new()
            .route("/hook", post(take))
            .with_state(book.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            book,
            _server: server,
        }
    }

    pub(crate) fn got(&self) -> Vec<Got> {
        self.book.got.lock().unwrap().clone()
    }

    /// What came, once there are so many.
    pub(crate) async fn wait_for(&self, many: usize) -> Vec<Got> {
        eventually(&format!("{many} webhooks arrive"), async || {
            Some(self.got()).filter(|got| got.len() >= many)
        })
        .await
    }
}

async fn take(
    extract::State(book): extract::State<Arc<Book>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let body = String::from_utf8(body.into()).unwrap();
    let mut got = Got {
        headers,
        body,
        status: 0,
        job_was: None,
    };
    if let Some(api) = &book.ask {
        got.job_was = Some(api.job(got.job()).await.state);
    }
    let mut all = book.got.lock().unwrap();
    got.status = (book.answer)(all.len());
    let status = StatusCode::from_u16(got.status).unwrap();
    all.push(got);
    status
}

/// The languages whose public libraries are asked, by the mark of their example in the docs.
pub(crate) const LANGUAGES: [&str; 2] = ["python", "js"];

/// What the example in docs/webhooks.md says of these requests: the kind of each event, or "no"
/// where the signature is not good. The example is run as it is written.
pub(crate) async fn verify(language: &str, secret: &str, requests: &[Got]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let libraries = root.join(".sluice-dev/verifiers");
    assert!(
        libraries.join("node_modules").is_dir() && libraries.join("venv").is_dir(),
        "the libraries are not installed: run these tests by `make test`"
    );
    let example = example(&root.join("docs/webhooks.md"), language);
    let (mut command, script, rest) = match language {
        "python" => (
            Command::new(libraries.join("venv/bin/python")),
            "example.py",
            "import json, sys\nfor line in sys.stdin:\n    r = json.loads(line)\n    \
             told = event(r['secret'], r['body'].encode(), r['headers'])\n    \
             print(told['type'] if told else 'no')\n",
        ),
        _ => (
            Command::new("node"),
            "example.mjs",
            "import { createInterface } from 'node:readline';\n\
             for await (const line of createInterface({ input: process.stdin })) {\n\
             const r = JSON.parse(line);\n\
             console.log(event(r.secret, r.body, r.headers)?.type ?? 'no');\n}\n",
        ),
    };
    // Beside the modules, where Node looks for them.
    let folder = tempfile::tempdir_in(&libraries).unwrap();
    let script: PathBuf = folder.path().join(script);
    fs::write(&script, format!("{example}\n{rest}")).unwrap();
    let mut process = command
        .arg(&script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    let lines: String = requests
        .iter()
        .map(|got| {
            let headers: serde_json::Map<String, Value> = got
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
                .collect();
            json!({ "secret": secret, "body": got.body, "headers": headers }).to_string() + "\n"
        })
        .collect();
    let write = async move {
        input.write_all(lines.as_bytes()).await.unwrap();
        drop(input);
    };
    let ((), output) = tokio::join!(write, process.wait_with_output());
    let output = output.unwrap();
    assert!(output.status.success(), "{language}: {output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    told.lines().map(str::to_owned).collect()
}

/// The example in this language.
fn example(document: &Path, language: &str) -> String {
    let text = fs::read_to_string(document).unwrap();
    let (_, from) = text.split_once(&format!("```{language}\n")).unwrap();
    from.split_once("```").unwrap().0.to_owned()
}
