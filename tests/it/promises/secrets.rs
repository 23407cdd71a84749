//! A secret is never shown: not in a log, an answer, a metric, nor a message on the broker.

use std::fs;

use lapin::{
    Connection, ConnectionProperties,
    options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use reqwest::Method;
use serde_json::json;
use sluice_shared::{api::NewJob, domain::State};

use crate::{
    harness::{Cluster, MASTER_KEY, Mode, eventually, on_every_mode, prompt},
    stub::{Play, Stub},
};

on_every_mode!(no_secret_is_shown_anywhere);

/// The marks that are searched for afterwards.
const KEYS: [&str; 5] = [
    "sk-mark-openai-7f3a91",
    "sk-mark-anthropic-7f3a92",
    "sk-mark-in-a-file-7f3a93",
    "mark-of-a-program-7f3a94",
    "sk-mark-by-the-api-7f3a95",
];

/// Accounts with secrets of every kind. The provider quotes the key that it refuses, and the
/// program prints its own before it fails.
fn config(stub: &Stub, key_file: &str) -> String {
    let [openai, anthropic, _, program, _] = KEYS;
    let url = stub.url();
    format!(
        r#"
[accounts.openai]
provider = "openai"
base_url = "{url}"
api_key = "{openai}"
default_model = "m"
[accounts.anthropic]
provider = "anthropic"
base_url = "{url}"
api_key = "{anthropic}"
default_model = "m"
[accounts.file]
provider = "openai"
base_url = "{url}"
api_key_file = "{key_file}"
default_model = "m"
[accounts.program]
provider = "command"
argv = ["sh", "-c", "env; env >&2; sleep 1; exit 1"]
env = {{ TOKEN = "{program}" }}
"#
    )
}

async fn no_secret_is_shown_anywhere(mode: Mode) {
    let stub = Stub::start(|ask| match ask.prompt.as_str() {
        "refuse" => Play::Refuse(401, "invalid_api_key"),
        "break" => Play::Refuse(500, "server_error"),
        "reject" => Play::Refuse(400, "invalid_request_error"),
        text => Play::Answer(format!("echo: {text}")),
    })
    .await;
    let key_file = tempfile::NamedTempFile::new().unwrap();
    fs::write(key_file.path(), KEYS[2]).unwrap();
    let mut cluster =
        Cluster::start(mode, &config(&stub, &key_file.path().display().to_string())).await;
    let tap = match mode {
        Mode::Distributed => Some(Tap::open(&cluster).await),
        Mode::Embedded => None,
    };
    let mut answers = vec![add_by_api(&cluster, &stub).await];
    let mut ids = Vec::new();
    for account in ["openai", "anthropic", "file", "program", "api"] {
        // The refusal comes last: after it the account is out.
        for text in ["fine", "reject", "break", "refuse"] {
            let job = NewJob {
                account: Some(account.parse().unwrap()),
                max_attempts: Some(1),
                ..prompt(text)
            };
            let id = cluster.submit(&job).await;
            if text == "refuse" && account != "program" {
                cluster
                    .until(id, "is refused", |job| {
                        job.attempts.iter().flatten().count() > 0
                    })
                    .await;
                cluster.api().cancel(id).await;
            }
            ids.push(id);
            cluster.wait(id).await;
        }
    }
    let asked = KEYS.map(|key| stub.count(|ask| ask.key == key));
    assert_eq!(asked, [4, 4, 4, 0, 5], "the keys were used");

    let mut shown = Vec::new();
    shown.append(&mut answers);
    let api = cluster.apis()[0].clone();
    for id in &ids {
        shown.push((
            format!("job {id}"),
            api.get(&format!("/api/jobs/{id}")).await.body,
        ));
    }
    for path in [
        "/api/jobs",
        "/api/accounts",
        "/api/accounts/api",
        "/api/workers",
        "/api/keys",
        "/metrics",
        "/health",
        "/api/openapi.json",
    ] {
        shown.push((path.to_owned(), api.get(path).await.body));
    }
    let truth = cluster.truth().await;
    let tables = "SELECT COALESCE(error_message, '') FROM attempts UNION ALL SELECT COALESCE(reason, '') FROM account_state \
         UNION ALL SELECT settings FROM account_definitions \
         UNION ALL SELECT secrets FROM account_definitions";
    shown.push((
        "the database".to_owned(),
        truth.column::<String>(tables).await.join("\n"),
    ));
    let mut secrets: Vec<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    secrets.push(MASTER_KEY.to_owned());
    if mode == Mode::Embedded {
        let made = fs::read_to_string(cluster.home().join("master.key")).unwrap();
        secrets.push(made.trim().to_owned());
    }
    if let Some(tap) = tap {
        shown.push(("messages to workers".to_owned(), tap.bodies().await));
        shown.push((
            "replies".to_owned(),
            replies_while_no_api_runs(&mut cluster).await,
        ));
        secrets.push(cluster.postgres().password().unwrap().to_owned());
    }
    shown.extend(cluster.logs());
    for (place, text) in &shown {
        assert!(!text.is_empty(), "{place} says nothing");
        for secret in &secrets {
            assert!(
                !text.contains(secret.as_str()),
                "{place} shows {secret}:\n{text}"
            );
        }
        let may_show_the_first_key = matches!(place.as_str(), "up" | "api-1" | "api-2");
        assert!(
            may_show_the_first_key || !text.contains(&api.key),
            "{place} shows an API key"
        );
    }
}

/// Adds an account by the API, changes it and tests it; gives every answer.
async fn add_by_api(cluster: &Cluster, stub: &Stub) -> (String, String) {
    let api = cluster.api();
    let mut answers = String::new();
    let settings = |key: &str| {
        json!({
            "id": "api", "provider": "openai", "base_url": stub.url(), "default_model": "m",
            "api_key": key,
        })
    };
    // Refused, with the key in the request.
    let mut wrong = settings(KEYS[4]);
    wrong["api_key"] = json!([KEYS[4]]);
    answers += &api.post("/api/accounts", &wrong).await.body;
    let made = api.post("/api/accounts", &settings(KEYS[4])).await;
    assert_eq!(made.status, 201, "{}", made.body);
    answers += &made.body;
    let patch = api.request(Method::PATCH, "/api/accounts/api");
    answers += &api.send(patch.json(&json!({"weight": 2}))).await.body;
    answers += &eventually("it is tested", async || {
        let test = cluster.api().act("/api/accounts/api/test").await;
        (test.status == 200).then_some(test.body)
    })
    .await;
    ("answers about an account".into(), answers)
}

/// A queue that gets a copy of whatever goes to the workers.
struct Tap {
    connection: Connection,
    queue: String,
}

impl Tap {
    async fn open(cluster: &Cluster) -> Self {
        let connection = connect(cluster).await;
        let channel = connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions {
            exclusive: true,
            ..Default::default()
        };
        let queue = channel
            .queue_declare("".into(), options, FieldTable::default())
            .await
            .unwrap();
        let name = queue.name().clone();
        for account in ["openai", "anthropic", "file", "program", "api"] {
            let key = format!("account.{account}");
            let options = QueueBindOptions::default();
            channel
                .queue_bind(
                    name.clone(),
                    "sluice.jobs".into(),
                    key.into(),
                    options,
                    FieldTable::default(),
                )
                .await
                .unwrap();
        }
        Self {
            connection,
            queue: name.to_string(),
        }
    }

    async fn bodies(&self) -> String {
        take_all(&self.connection, &self.queue).await
    }
}

async fn connect(cluster: &Cluster) -> Connection {
    let url = cluster.rabbitmq();
    Connection::connect(url.as_str(), ConnectionProperties::default())
        .await
        .unwrap()
}

/// Every message of a queue, headers and all. They are not acked, so they go back.
async fn take_all(connection: &Connection, queue: &str) -> String {
    let channel = connection.create_channel().await.unwrap();
    let mut bodies = String::new();
    while let Some(message) = channel
        .basic_get(queue.into(), BasicGetOptions::default())
        .await
        .unwrap()
    {
        bodies += &format!("{:?} ", message.delivery.properties);
        bodies += &String::from_utf8_lossy(&message.delivery.data);
        bodies += "\n";
    }
    bodies
}

/// What waits in the reply queue while no API process takes it.
async fn replies_while_no_api_runs(cluster: &mut Cluster) -> String {
    let job = NewJob {
        account: Some("program".parse().unwrap()),
        max_attempts: Some(1),
        ..prompt("x")
    };
    let ids = cluster.submit_many(&vec![job; 3]).await;
    for id in &ids {
        cluster
            .until(*id, "runs", |job| job.state == State::Running)
            .await;
    }
    let servers = cluster.servers();
    for name in &servers {
        cluster.kill9(name);
    }
    let connection = connect(cluster).await;
    let bodies = eventually("a reply waits", async || {
        Some(take_all(&connection, "sluice.replies").await).filter(|bodies| !bodies.is_empty())
    })
    .await;
    // What was looked at goes back to the queue.
    let _ = connection.close(200, "".into()).await;
    for name in &servers {
        cluster.start_again(name);
    }
    cluster.until_up().await;
    for job in cluster.wait_all(&ids).await {
        assert_eq!(job.state, State::Failed, "{job:?}");
    }
    bodies
}
