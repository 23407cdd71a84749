//! A tiny real call through an account's worker.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
};
use serde::de::DeserializeOwned;
use sluice_shared::{
    api::{AccountTest, Scope},
    domain::{AccountId, JobId, Span},
    live::{LiveError, Piece, StreamId},
    message::Control,
};
use tokio::time::Instant;

use super::{
    Edge,
    accounts::find,
    extract::{Caller, NoParams},
    problem::{ApiError, Code},
};

/// How long a worker may take to say how it went: more than the call itself may take.
const PATIENCE: Duration = Duration::from_secs(35);

/// How long one look into the answer's stream waits.
const LOOK: Span = Span::seconds(2);

/// Test an account.
///
/// One of its workers makes one tiny real call, whatever the account's standing: so a credential
/// that was mended can be tried before `resume`. The call is not a job and is in no history.
#[utoipa::path(
    post, path = "/api/accounts/{id}/test", tag = "accounts", security(("key" = ["operate"])),
    params(("id" = AccountId, Path, description = "its name")),
    responses(
        (status = 200, description = "How it went: all is well when `outcome` is `completed`.", body = AccountTest),
        (status = 404, description = "`no_such_account`"),
        (status = 409, description = "`no_worker`"),
    )
)]
pub(super) async fn try_account(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Path(name): Path<String>,
    _: NoParams,
) -> Result<Json<AccountTest>, ApiError> {
    caller.needs(Scope::Operate)?;
    let account = find(&edge, &name).await?.account.id;
    let worker = worker_of(&edge, &account)?;
    let test = JobId::generate();
    let began = Instant::now();
    tracing::info!(%account, worker, by = %caller.0.name, "an account is tested");
    let control = Control::Test {
        worker: worker.clone(),
        account: account.clone(),
        test,
    };
    let heard = match edge.app.broker.control(&control).await {
        Ok(()) => answer(&edge, test, began + PATIENCE).await,
        Err(error) => Err(error.to_string()),
    };
    Ok(Json(heard.unwrap_or_else(|detail| AccountTest {
        account,
        worker,
        outcome: "no_answer".into(),
        detail: Some(detail),
        text: None,
        model: None,
        usage: None,
        took: Span(began.elapsed()),
    })))
}

/// The worker heard of last.
pub(super) fn worker_of(edge: &Edge, account: &AccountId) -> Result<String, ApiError> {
    let workers = &edge.app.workers;
    let serving = workers
        .last_heard()
        .into_iter()
        .filter(|presence| presence.accounts.contains(account))
        .max_by_key(|presence| presence.beat_at);
    serving.map(|presence| presence.worker).ok_or_else(|| {
        let troubles = workers.troubles(account);
        let detail = match troubles.first() {
            Some(trouble) => format!(
                "the worker `{}` cannot serve `{account}`: {}",
                trouble.worker, trouble.problem
            ),
            None => format!("no worker serves `{account}`"),
        };
        ApiError::new(Code::NoWorker, detail)
    })
}

/// Waits for what the worker says. The live plane carries it: it is of use only now.
pub(super) async fn answer<T: DeserializeOwned>(
    edge: &Edge,
    test: JobId,
    deadline: Instant,
) -> Result<T, String> {
    while Instant::now() < deadline && !edge.shutdown.is_cancelled() {
        match edge.app.live.read(test, StreamId::START, 1, LOOK).await {
            Ok(pieces) => {
                if let Some((_, Piece::Text { text, .. })) = pieces.first() {
                    return serde_json::from_str(text)
                        .map_err(|_| "the worker is of another version".into());
                }
            }
            Err(LiveError::Unavailable(error)) => {
                return Err(format!("the answer cannot be heard: {error}"));
            }
        }
    }
    Err("the worker said nothing in time".into())
}
