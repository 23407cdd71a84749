//! What holds for both HTTP providers alike: connections, credentials, and the look at an account.

use std::{io::Write, path::Path, sync::Arc, sync::Mutex};

use sluice_consumer_worker::provider::{Check, Prompt, Sink};
use sluice_shared::domain::Request;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    stub::{Play, Stub},
    support::{KEY, build, prompt, run, try_build},
};

fn anthropic(url: &str) -> String {
    format!(
        "provider = \"anthropic\"\napi_key = \"{KEY}\"\nbase_url = \"{url}\"\n\
         default_model = \"m\""
    )
}

#[tokio::test]
async fn a_connection_that_is_refused_or_reset_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let provider = build(&anthropic(&url));
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            // Closed with what was sent unread: the other side gets a reset.
            connection.readable().await.unwrap();
            drop(connection);
        }
    });
    assert_eq!(
        run(&provider, &Request::prompt("hi")).await.failure(),
        "connection"
    );
    server.shutdown().await;
    let ran = run(&provider, &Request::prompt("hi")).await;
    assert_eq!(ran.failure(), "connection");
    assert!(ran.line().contains("refused"), "{}", ran.line());
}

#[tokio::test]
async fn a_credential_that_cannot_be_had_is_named_with_what_to_do() {
    let with = |credential: &str| {
        let settings = format!("provider = \"anthropic\"\n{credential}");
        let error = try_build(&settings, Path::new("/nowhere"))
            .map(drop)
            .unwrap_err()
            .to_string();
        error.replace(env!("CARGO_MANIFEST_DIR"), "[here]")
    };
    let empty = tempfile::NamedTempFile::new().unwrap();
    let mut broken = tempfile::NamedTempFile::new().unwrap();
    broken.write_all("sk-\nbroken".as_bytes()).unwrap();
    let file = |path: &Path| format!("api_key_file = \"{}\"", path.display());
    let table = [
        with("api_key_env = \"SLUICE_TEST_NOT_SET\""),
        with("api_key_file = \"/nowhere/key\""),
        with(&file(empty.path())),
        with("api_key = \"  \""),
        with(&file(broken.path())),
    ]
    .join("\n");
    insta::assert_snapshot!(table, @r#"
    accounts.main.api_key_env: the environment variable SLUICE_TEST_NOT_SET is not set; set it for the worker, or name another source of the credential
    accounts.main.api_key_file: /nowhere/key cannot be read: No such file or directory (os error 2); set it for the worker, or name another source of the credential
    accounts.main.api_key_file: holds nothing; put the credential there
    accounts.main.api_key: holds nothing; put the credential there
    accounts.main.api_key: has characters that no key has; see how it was copied
    "#);
}

#[tokio::test]
async fn a_look_says_what_is_wrong_and_how_to_mend_it() {
    let stub = Stub::start().await;
    let local = build(&format!(
        "provider = \"openai\"\nbase_url = \"{}\"",
        stub.url
    ));
    let provider = build(&anthropic(&stub.url));
    let mut table = String::new();
    let mut note = |name: &str, check: Check| {
        assert!(!format!("{check:?}").contains(KEY));
        let mark = if check.is_ok() { "ok" } else { "problem" };
        table += &format!("{name}\n    {mark}: {check}\n");
    };
    note("well", provider.check().await);
    let asked = stub.take_asked().remove(0);
    assert_eq!(asked.path, "/v1/models");
    assert_eq!(asked.headers["x-api-key"], KEY);
    stub.play(Play::anthropic_error(
        401,
        "authentication_error",
        &format!("invalid {KEY}"),
    ));
    note("bad key", provider.check().await);
    stub.play(Play::Http {
        status: 404,
        headers: vec![],
        body: String::new(),
    });
    note("no list of models", local.check().await);
    stub.play(Play::Http {
        status: 301,
        headers: vec![("location", "https://elsewhere.example/".into())],
        body: String::new(),
    });
    note("moved", local.check().await);
    stub.play(Play::anthropic_error(401, "authentication_error", "no key"));
    note("a key that is missing", local.check().await);
    stub.play(Play::Http {
        status: 500,
        headers: vec![],
        body: "broken".into(),
    });
    note("broken", local.check().await);
    drop(stub);
    let gone = local.check().await;
    assert!(
        gone.to_string().starts_with("127.0.0.1 does not answer"),
        "{gone}"
    );
    insta::assert_snapshot!(table);
}

/// All that is logged, by anyone and however trifling.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_key_is_in_no_log_and_no_debug_output() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    tracing::trace!("the log is on");
    let stub = Stub::start().await;
    for settings in [
        anthropic(&stub.url),
        anthropic(&stub.url).replace("anthropic", "openai"),
    ] {
        let provider = build(&settings);
        assert!(!format!("{provider:?}").contains(KEY));
        stub.play(Play::anthropic_error(
            401,
            "authentication_error",
            &format!("bad key {KEY}"),
        ));
        let (sink, _received) = Sink::new();
        let request = Request::prompt("hi");
        let prompt: Prompt<'_> = prompt(&request, std::time::Duration::from_secs(60));
        let outcome = provider.run(prompt, &CancellationToken::new(), &sink).await;
        assert_eq!(outcome.name(), "auth_failed");
        provider.check().await;
    }
    drop(guard);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("the log is on"));
    assert!(!log.contains(KEY), "{log}");
}
