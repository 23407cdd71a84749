//! The real Claude Code CLI, talking to the stub. Each start of it takes most of a second of
//! processor time, so that there are few.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use sluice_consumer_worker::provider::{Provider, Sink};
use sluice_shared::domain::{Message, Outcome, Request, Role};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{
    stub::{Asked, End, Play, Stub, anthropic_events, within},
    support::{
        KEY, cancel_when, in_seconds, processes_running, processes_with, prompt, run, try_build,
        until,
    },
};

/// The real CLI.
pub(crate) fn claude() -> PathBuf {
    let bin = std::env::var_os("SLUICE_TEST_CLAUDE_BIN").expect(
        "SLUICE_TEST_CLAUDE_BIN is not set: `make test` installs the Claude Code CLI and sets it; \
         by hand, run `npm install --prefix DIR @anthropic-ai/claude-code` and set it to \
         DIR/node_modules/.bin/claude",
    );
    PathBuf::from(bin)
}

/// An account of the CLI with a data folder of its own.
pub(crate) struct Account {
    pub(crate) stub: Stub,
    home: TempDir,
    pub(crate) provider: Provider,
}

impl Account {
    pub(crate) async fn new(settings: &str) -> Self {
        Self::with_bin(&claude(), settings).await
    }

    pub(crate) async fn with_bin(bin: &Path, settings: &str) -> Self {
        let stub = Stub::start().await;
        let home = tempfile::tempdir().unwrap();
        let settings = format!(
            "provider = \"claude-cli\"\nbin = \"{}\"\nbase_url = \"{}\"\n{settings}",
            bin.display(),
            stub.url
        );
        let provider = try_build(&settings, home.path()).unwrap();
        Self {
            stub,
            home,
            provider,
        }
    }

    async fn with_key() -> Self {
        Self::new(&format!(
            "api_key = \"{KEY}\"\ndefault_model = \"claude-sonnet-5\""
        ))
        .await
    }

    pub(crate) fn config_dir(&self) -> PathBuf {
        self.home.path().join("claude/main")
    }
}

fn events(pieces: &[&str]) -> Vec<String> {
    let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
    anthropic_events("claude-sonnet-5", &pieces)
}

/// What the user said, as the API was asked.
pub(crate) fn user_texts(asked: &Asked) -> Vec<String> {
    let messages = asked.body["messages"].as_array().unwrap();
    messages
        .iter()
        .filter(|message| message["role"] == "user")
        .flat_map(|message| match &message["content"] {
            Value::Array(blocks) => blocks
                .iter()
                .map(|block| block["text"].as_str().unwrap().to_owned())
                .collect(),
            text => vec![text.as_str().unwrap().to_owned()],
        })
        .collect()
}

#[tokio::test]
async fn an_answer_is_streamed_and_the_request_is_lean() {
    let account = Account::with_key().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&account.config_dir()), 0o700);
    let request = Request {
        messages: vec![
            Message {
                role: Role::System,
                content: "Speak German.".into(),
            },
            Message {
                role: Role::User,
                content: "say hello".into(),
            },
        ],
        system: Some("Be short.".into()),
        ..Request::prompt("")
    };
    let ran = run(&account.provider, &request).await;
    assert_eq!(ran.deltas, ["Hello", " there"]);
    let Outcome::Completed(done) = &ran.outcome else {
        panic!("{}", ran.line())
    };
    assert_eq!(done.text, "Hello there");
    assert_eq!(done.model.as_deref(), Some("claude-sonnet-5"));
    assert_eq!(done.stop_reason.as_deref(), Some("end_turn"));
    assert_eq!(
        (done.usage.input_tokens, done.usage.output_tokens),
        (17, 25)
    );
    assert!(done.usage.cost_microusd.is_some_and(|cost| cost > 0));

    let asked = account.stub.take_asked();
    let [asked] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(asked.headers["x-api-key"], KEY);
    assert_eq!(asked.body["model"], "claude-sonnet-5");
    assert_eq!(asked.body["tools"], json!([]));
    assert_eq!(user_texts(asked).last().unwrap(), "say hello");
    let system = asked.body["system"].as_array().unwrap().last().unwrap()["text"].clone();
    assert_eq!(system, "Be short.\n\nSpeak German.");
    assert!(asked.body.to_string().len() < 5000, "{}", asked.body);

    // Neither the prompt nor the answer stays in the config directory.
    let kept = contents(&account.config_dir());
    assert!(
        !kept.contains("say hello") && !kept.contains("Hello there"),
        "{kept}"
    );
}

/// Each start costs most of a second, so that here are those that only the real CLI can show.
/// The rest of the mapping is tested on its lines, beside the code.
#[tokio::test]
async fn every_answer_of_the_api_has_its_outcome_with_a_key() {
    let account = Account::with_key().await;
    let error = Play::anthropic_error;
    let cases = [
        (
            "429 with a long retry-after",
            error(429, "rate_limit_error", "slow down").with("retry-after", "3600"),
        ),
        ("529", error(529, "overloaded_error", "Overloaded")),
        ("500", error(500, "api_error", "Internal server error")),
        (
            "401",
            error(401, "authentication_error", "invalid x-api-key"),
        ),
        ("400", error(400, "invalid_request_error", "messages: bad")),
        (
            "400 low credit",
            error(
                400,
                "invalid_request_error",
                "Your credit balance is too low",
            ),
        ),
        (
            "400 long",
            error(400, "invalid_request_error", "prompt is too long: 9 > 8"),
        ),
        ("404", error(404, "not_found_error", "model: claude-nope")),
        (
            "a cut stream",
            Play::stream(events(&["Hel", "lo"]).into_iter().take(4), End::Cut),
        ),
        (
            "overloaded in the stream",
            Play::stream(
                events(&["Hel"]).into_iter().take(3).chain([format!(
                    "event: error\ndata: {}\n\n",
                    json!({"type": "error", "error": {
                        "type": "overloaded_error", "message": "Overloaded",
                    }})
                )]),
                End::Whole,
            ),
        ),
    ];
    let mut table = String::new();
    for (name, play) in cases {
        account.stub.play(play);
        let ran = run(&account.provider, &Request::prompt("hi")).await;
        // The words are the CLI's and change with its versions; what they come to must not.
        let line = ran.line();
        println!("{line}");
        table += &format!("{name}\n    {}\n", line.split_once(": ").unwrap().0);
    }
    insta::assert_snapshot!(table, @r#"
    429 with a long retry-after
        throttled Burst until -
    529
        overloaded until -
    500
        failed http_500
    401
        auth_failed
    400
        rejected invalid_request
    400 low credit
        out_of_credit
    400 long
        rejected prompt_too_long
    404
        rejected model_not_found
    a cut stream
        failed stream_cut
    overloaded in the stream
        overloaded until -
    "#);
}

#[tokio::test]
async fn a_plans_limits_are_told_apart_with_their_reset() {
    let account = Account::new("oauth_token = \"sk-ant-oat01-0123456789\"").await;
    let limited = |claim: &str, seconds: u64| {
        let reset = in_seconds(seconds)
            .parse::<sluice_shared::domain::Time>()
            .unwrap();
        let reset = (reset.as_millis() / 1000).to_string();
        Play::anthropic_error(
            429,
            "rate_limit_error",
            "This request would exceed your limit",
        )
        .with("anthropic-ratelimit-unified-status", "rejected")
        .with("anthropic-ratelimit-unified-reset", reset)
        .with("anthropic-ratelimit-unified-representative-claim", claim)
    };
    let cases = [
        ("five hours", limited("five_hour", 3600)),
        ("a week of one model", limited("seven_day_opus", 90_000)),
        (
            "not your limit",
            Play::anthropic_error(429, "rate_limit_error", "Rate limited"),
        ),
        (
            "a token that has run out",
            Play::anthropic_error(401, "authentication_error", "expired"),
        ),
    ];
    let mut table = String::new();
    for (name, play) in cases {
        account.stub.play(play);
        let ran = run(&account.provider, &Request::prompt("hi")).await;
        let line = ran.line();
        println!("{line}");
        table += &format!("{name}\n    {}\n", line.split_once(": ").unwrap().0);
    }
    insta::assert_snapshot!(table, @r#"
    five hours
        throttled Window until +3600s
    a week of one model
        throttled Model until +90000s
    not your limit
        throttled Host until -
    a token that has run out
        auth_failed
    "#);
    assert!(account.stub.asked().iter().all(|asked| {
        asked.headers["authorization"] == "Bearer sk-ant-oat01-0123456789"
            && !asked.headers.contains_key("x-api-key")
    }));
}

#[tokio::test]
async fn a_cancel_leaves_no_process_behind() {
    let account = Account::with_key().await;
    account.stub.play(Play::stream(
        events(&["Hel"]).into_iter().take(3),
        End::Never,
    ));
    let mark = account.config_dir().display().to_string();
    let ran = cancel_when(&account.provider, &Request::prompt("hi"), |text| {
        assert!(!processes_with(&mark).is_empty());
        text == "Hel"
    })
    .await;
    assert_eq!(ran.outcome, Outcome::Cancelled);
    within(until(|| processes_with(&mark).is_empty())).await;
    account.stub.is_alone().await;
}

/// The CLI's shell leaves the process group, so that ending the group alone would not be enough.
#[tokio::test]
async fn a_cancel_ends_what_a_tool_has_started() {
    let key = format!("api_key = \"{KEY}\"\ndefault_model = \"claude-sonnet-5\"");
    let account = Account::new(&format!("{key}\nallow_tools = true")).await;
    // No other process waits that long. (The CLI refuses to run a bare `sleep`.)
    let wait = format!(
        "timeout {} tail -f /dev/null",
        1_000_000 + std::process::id()
    );
    let input = json!({"command": wait, "description": "wait"}).to_string();
    let event = |data: Value| {
        format!(
            "event: {}\ndata: {data}\n\n",
            data["type"].as_str().unwrap()
        )
    };
    let mut answer = events(&[]);
    answer.splice(
        1..,
        [
            event(
                json!({"type": "content_block_start", "index": 0, "content_block":
            {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}}),
            ),
            event(json!({"type": "content_block_delta", "index": 0, "delta":
            {"type": "input_json_delta", "partial_json": input}})),
            event(json!({"type": "content_block_stop", "index": 0})),
            event(
                json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 25}}),
            ),
            event(json!({"type": "message_stop"})),
        ],
    );
    account.stub.play(Play::stream(answer, End::Whole));
    let request = Request {
        params: json!({"tools": ["Bash"]}).as_object().unwrap().clone(),
        ..Request::prompt("wait")
    };
    let (sink, _received) = Sink::new();
    let cancel = CancellationToken::new();
    let running = account
        .provider
        .run(prompt(&request, Duration::from_secs(100)), &cancel, &sink);
    let waits = || !processes_running(&wait).is_empty();
    let mut running = Box::pin(running);
    tokio::select! {
        () = within(until(waits)) => cancel.cancel(),
        outcome = &mut running => panic!("{outcome:?} after {:#?}", account.stub.asked()),
    }
    assert_eq!(running.await, Outcome::Cancelled);
    within(until(|| !waits())).await;
    let tools = account.stub.asked()[0].body["tools"].clone();
    assert_eq!(tools.as_array().unwrap().len(), 1);
    assert_eq!(tools[0]["name"], "Bash");
}

pub(crate) const CANARY: &str = "the-canary-sings";

/// The real CLI behind a script that first puts a canary where the CLI is started and where its
/// home is, and then does `besides`.
pub(crate) fn behind_canaries(dir: &Path, besides: &str) -> PathBuf {
    let path = dir.join("claude");
    let script = format!(
        "#!/bin/sh\necho {CANARY} > ./canary\necho {CANARY} > \"$HOME/canary\"\n{besides}\n\
         exec '{}' \"$@\"\n",
        claude().display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// The canary's file in every way in which a prompt may name it.
pub(crate) fn with_paths(dir: &Path) -> String {
    std::fs::write(dir.join("canary"), CANARY).unwrap();
    let path = dir.join("canary");
    let path = path.display();
    format!(
        "read @{path} and @~/canary, @canary, @./canary, @\"{path}\" and @{}",
        dir.display()
    )
}

#[tokio::test]
async fn nothing_in_a_prompt_makes_it_read_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let bin = behind_canaries(dir.path(), "");
    let key = format!("api_key = \"{KEY}\"\ndefault_model = \"claude-sonnet-5\"");
    let account = Account::with_bin(&bin, &key).await;
    let prompt = with_paths(dir.path());
    let request = Request {
        system: Some(prompt.clone()),
        ..Request::prompt(prompt.clone())
    };
    run(&account.provider, &request).await.text();
    let asked = account.stub.take_asked();
    let [asked] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(user_texts(asked).last().unwrap(), &prompt);
    assert!(!asked.body.to_string().contains(CANARY), "{}", asked.body);
}

/// Shows that the test above would see it: without the guard, the same prompt reads the file.
#[tokio::test]
async fn without_the_guard_the_canary_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let bin = behind_canaries(dir.path(), "unset CLAUDE_CODE_DISABLE_ATTACHMENTS");
    let key = format!("api_key = \"{KEY}\"\ndefault_model = \"claude-sonnet-5\"");
    let account = Account::with_bin(&bin, &key).await;
    run(&account.provider, &Request::prompt(with_paths(dir.path())))
        .await
        .text();
    let asked = account.stub.take_asked();
    assert!(
        asked
            .iter()
            .any(|asked| asked.body.to_string().contains(CANARY))
    );
}

#[tokio::test]
async fn nothing_in_a_prompt_is_a_command_of_the_cli() {
    let account = Account::with_key().await;
    for text in ["/help", "/word to the wise\n/exit"] {
        let ran = run(&account.provider, &Request::prompt(text)).await;
        assert_eq!(ran.text(), "Hello there", "{text}");
        let asked = account.stub.take_asked();
        let [asked] = asked.as_slice() else {
            panic!("{text}: {asked:?}")
        };
        let seen = user_texts(asked).pop().unwrap();
        assert_eq!(seen.trim_start_matches('\n'), text);
    }
}

#[tokio::test]
async fn a_look_tells_the_version_and_the_login() {
    let account = Account::with_key().await;
    let check = account.provider.check().await;
    assert!(
        check.is_ok() && check.to_string().contains("login by api_key"),
        "{check}"
    );
    let account = Account::new("").await;
    let check = account.provider.check().await;
    assert!(check.to_string().contains("is not logged in"), "{check}");
    assert!(check.to_string().contains("claude auth login"), "{check}");
    let ran = run(&account.provider, &Request::prompt("hi")).await;
    assert_eq!(ran.outcome.name(), "auth_failed", "{}", ran.line());
    assert!(account.stub.asked().is_empty());
}

fn contents(dir: &Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all += &contents(&path);
        } else {
            all += &String::from_utf8_lossy(&std::fs::read(&path).unwrap());
        }
    }
    all
}
