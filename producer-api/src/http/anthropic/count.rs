//! `POST /v1/messages/count_tokens`: a question to the provider itself, through a worker. It is no
//! job, since it runs no prompt: nothing waits, is charged or is kept.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use serde_json::{Value, json};
use sluice_shared::{
    clock,
    domain::{self, JobId, Lane},
    message::{Control, Counted},
};
use tokio::time::{Duration, Instant};

use super::{Refusal, messages};
use crate::http::{
    Edge, account_test,
    extract::Caller,
    gateway::{fault::Fault, run},
    problem::ApiError,
    submit::{self, Rules},
};

/// How long a worker may take: more than the provider may.
const PATIENCE: Duration = Duration::from_secs(35);

/// The provider that can count.
const PROVIDER: &str = "anthropic";

/// Counts what a conversation has in tokens, as the provider of its model does.
pub(in crate::http) async fn count(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    let (parts, body) = request.into_parts();
    let job = messages::ask(run::read(&edge, &caller, &parts, body).await?)?.job;
    let rules = Rules {
        max_prompt_bytes: edge.app.config.api.max_prompt_bytes,
        accounts: &edge.app.roster.accounts(),
        now: clock::now(),
        webhooks: None,
    };
    let answer = JobId::generate();
    let row = submit::row(job, answer, &rules).map_err(ApiError::from)?;
    let control = ask(&edge, &row.lane, row.request, answer)?;
    let told = edge.app.broker.control(&control).await;
    let heard: Result<Counted, String> = match told {
        Ok(()) => account_test::answer(&edge, answer, Instant::now() + PATIENCE).await,
        Err(error) => Err(error.to_string()),
    };
    match heard {
        Ok(Counted::Tokens { input_tokens }) => Ok(Json(json!({ "input_tokens": input_tokens }))),
        Ok(Counted::Refused {
            code,
            detail,
            rejected,
        }) => Err(Fault::not_counted(&code, detail, rejected).into()),
        Err(detail) => Err(Fault::not_counted("no_answer", detail, false).into()),
    }
}

/// The question, to a worker that serves an account which can count for this lane.
fn ask(
    edge: &Edge,
    lane: &Lane,
    request: domain::Request,
    answer: JobId,
) -> Result<Control, Fault> {
    let accounts = edge.app.roster.accounts();
    let mut able = accounts
        .iter()
        .filter(|account| account.provider == PROVIDER && lane.admits(account))
        .peekable();
    if able.peek().is_none() {
        let why = "no account that offers it can count tokens; only those of the provider \
                   `anthropic` can";
        return Err(Fault::unsupported("model", why));
    }
    let (account, worker) = able
        .find_map(|account| Some((account, account_test::worker_of(edge, &account.id).ok()?)))
        .ok_or_else(|| {
            let detail = "no worker serves an account that can count now";
            Fault::not_counted("no_worker", detail, false)
        })?;
    Ok(Control::Count {
        worker,
        account: account.id.clone(),
        answer,
        request: Box::new(request),
    })
}
