//! How many tokens a request has: a question to an account's provider that runs no prompt.

use std::{sync::Arc, time::Duration};

use sluice_shared::{
    domain::{AccountId, JobId, Outcome, Request, Span},
    live::Piece,
    message::Counted,
};

use crate::engine::Engine;

/// How long the provider may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long the answer is kept for whoever asked.
const KEPT: Span = Span::seconds(60);

/// Asks, and says what was heard in the stream `answer`.
pub(crate) async fn run(
    engine: Arc<Engine>,
    account: AccountId,
    answer: JobId,
    request: Box<Request>,
) {
    let counted = match engine.services.get(&account) {
        Some(account) => {
            let count = Box::pin(account.provider.count(&request));
            tokio::time::timeout(TIMEOUT, count)
                .await
                .unwrap_or_else(|_| Err(Outcome::failed("timeout", "the provider took too long")))
        }
        None => Err(Outcome::failed(
            "not_served",
            "this worker serves the account no longer",
        )),
    };
    let counted = match counted {
        Ok(input_tokens) => Counted::Tokens { input_tokens },
        Err(outcome) => {
            let (code, detail) = outcome.error().unwrap_or_default();
            Counted::Refused {
                code: code.to_owned(),
                detail: detail.to_owned(),
                rejected: matches!(outcome, Outcome::Rejected { .. }),
            }
        }
    };
    let Ok(text) = serde_json::to_string(&counted) else {
        return;
    };
    let pieces = [Piece::Text { attempt: 0, text }, Piece::End];
    if let Err(error) = engine.live.append(answer, &pieces, KEPT).await {
        tracing::debug!(%error, "a count could not be said");
    }
}
