//! A test of an account: one tiny real call, whose outcome goes to whoever asked.

use std::{sync::Arc, time::Duration};

use sluice_shared::{
    api::AccountTest,
    domain::{AccountId, JobId, Outcome, Request, Span},
    live::Piece,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    engine::Engine,
    provider::{Prompt, Sink},
};

const PROMPT: &str = "Reply with the one word: ready";

/// How long the provider may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long the answer is kept for whoever asked.
const KEPT: Span = Span::seconds(60);

/// Of the answer, so many characters are shown.
const MOST_TEXT: usize = 200;

/// Calls the account's provider once and says how it went in the stream `test`.
pub(crate) async fn run(engine: Arc<Engine>, account: AccountId, test: JobId) {
    let began = Instant::now();
    let outcome = match engine.services.get(&account) {
        Some(account) => {
            let request = Request::prompt(PROMPT);
            let prompt = Prompt {
                job: test,
                attempt: 1,
                session: None,
                request: &request,
                timeout: TIMEOUT,
            };
            let (sink, _text) = Sink::new();
            let never = CancellationToken::new();
            Box::pin(account.provider.run(prompt, &never, &sink)).await
        }
        None => Outcome::failed("not_served", "this worker serves it no longer"),
    };
    let report = report(account, engine.name.clone(), outcome, began.elapsed());
    let Ok(text) = serde_json::to_string(&report) else {
        return;
    };
    let pieces = [Piece::Text { attempt: 0, text }, Piece::End];
    if let Err(error) = engine.live.append(test, &pieces, KEPT).await {
        tracing::warn!(%error, "how a test went could not be said");
    }
}

fn report(account: AccountId, worker: String, outcome: Outcome, took: Duration) -> AccountTest {
    let detail = outcome
        .error()
        .map(|(code, detail)| format!("{code}: {detail}"));
    let name = outcome.name().to_owned();
    let completion = match outcome {
        Outcome::Completed(completion) => Some(completion),
        _ => None,
    };
    AccountTest {
        account,
        worker,
        outcome: name,
        detail,
        text: completion
            .as_ref()
            .map(|done| done.text.trim().chars().take(MOST_TEXT).collect()),
        usage: completion.as_ref().map(|done| done.usage),
        model: completion.and_then(|done| done.model),
        took: Span::from_millis(i64::try_from(took.as_millis()).unwrap_or(i64::MAX)),
    }
}
