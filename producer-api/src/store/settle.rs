//! Settling: what workers report becomes state, history and free slots, many reports at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sea_orm::{
    DatabaseTransaction, DerivePartialModel, EntityTrait, FromQueryResult, QuerySelect,
    prelude::Uuid,
};
use sluice_shared::{
    domain::{
        AccountId, BatchId, Delivery, Event, Job, JobId, Outcome, Settlement, State, Time,
        job::Refused, quota::Spent,
    },
    message::{Reply, Report},
};

use super::{
    Store, StoreError,
    bulk::{Column, Rows, Write, write_and_query, write_together},
    clients,
    cooling::{self, Left},
    count,
    entity::job,
    fallback, for_update,
    history::{Ending, History},
    learned,
    limits::Ends,
    webhooks::{self, Occurrence},
};

/// What to do about one attempt: a worker's report, or a finding of the API itself.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are reports")]
pub enum Verdict {
    /// A worker said so.
    Report(Reply),
    /// Nobody runs it and nobody will: its message is gone, or its lease has ended.
    Lost {
        /// Which job.
        job: JobId,
        /// Which attempt.
        attempt: u32,
        /// It may have begun without the truth plane having heard of it.
        began: bool,
    },
    /// It was never published: back to the backlog, as if nothing had been.
    Unpublished {
        /// Which job.
        job: JobId,
        /// Which attempt.
        attempt: u32,
    },
}

impl Verdict {
    pub(super) fn job(&self) -> JobId {
        match self {
            Self::Report(reply) => reply.job,
            Self::Lost { job, .. } | Self::Unpublished { job, .. } => *job,
        }
    }

    pub(super) fn attempt(&self) -> u32 {
        match self {
            Self::Report(reply) => reply.attempt,
            Self::Lost { attempt, .. } | Self::Unpublished { attempt, .. } => *attempt,
        }
    }
}

/// What became of the verdicts.
#[derive(Debug, Default)]
pub struct Settled {
    /// Jobs that have reached a terminal state, with it.
    pub ended: Vec<(JobId, State)>,
    /// Jobs that have come into another state that is not terminal, with it.
    pub moved: Vec<(JobId, State)>,
    /// Attempts that have ended, by account and outcome.
    pub attempts: Vec<(String, &'static str)>,
    /// Batches of jobs that have ended, each once.
    pub batches: BTreeSet<BatchId>,
    /// Jobs that have ended with others behind them.
    pub parents: Vec<JobId>,
    /// Lanes with jobs that are waiting again, and may go at once.
    pub requeued: Vec<String>,
    /// Verdicts that changed nothing: late, repeated or superseded.
    pub refused: usize,
    /// Slots that have become free.
    pub freed: usize,
    /// Accounts whose cooldown has changed, with its end; `None` when it is over.
    pub cooling: Vec<(AccountId, Option<Time>)>,
    /// Webhooks that are to be sent.
    pub webhooks: usize,
}

/// What is read of a job to settle it.
#[derive(Debug, DerivePartialModel)]
#[sea_orm(entity = "job::Entity")]
pub(super) struct JobRow {
    pub(super) id: Uuid,
    state: String,
    lane: String,
    client: String,
    model: Option<String>,
    attempt: i64,
    failures: i64,
    losses: i64,
    max_attempts: i64,
    at_most_once: bool,
    cancel_requested: bool,
    pub(super) account: Option<String>,
    pub(super) worker: Option<String>,
    error_code: Option<String>,
    error_message: Option<String>,
    ready: bool,
    run_at: i64,
    pub(super) created_at: i64,
    pub(super) dispatched_at: Option<i64>,
    pub(super) started_at: Option<i64>,
    lease_until: Option<i64>,
    finished_at: Option<i64>,
    webhook: Option<String>,
    batch: Option<Uuid>,
    has_children: bool,
}

/// Its columns, by the names above.
const JOB_ROW: &str = "jobs.id, jobs.state, jobs.lane, jobs.client, jobs.model, jobs.attempt, jobs.failures, jobs.losses, \
     jobs.max_attempts, jobs.at_most_once, jobs.cancel_requested, jobs.account, jobs.worker, \
     jobs.error_code, jobs.error_message, jobs.ready, jobs.run_at, jobs.created_at, \
     jobs.dispatched_at, jobs.started_at, jobs.lease_until, jobs.finished_at, jobs.webhook, jobs.batch, jobs.has_children";

/// A job while its verdicts are applied.
struct Open {
    row: JobRow,
    job: Job,
    changed: bool,
}

impl Store {
    /// Applies verdicts in their order, in one transaction. One that comes late, twice or about a
    /// superseded attempt changes nothing. `chance` gives numbers in `[0, 1)` for backoffs.
    ///
    /// # Errors
    /// When the database did not take it; then nothing was changed.
    pub async fn settle(
        &self,
        verdicts: &[Verdict],
        now: Time,
        chance: fn() -> f64,
    ) -> Result<Settled, StoreError> {
        let mut settled = Settled::default();
        let tx = self.begin().await?;
        let (mut open, has_endpoints) = lock_jobs(&tx, verdicts).await?;
        let mut ways = fallback::ways(&tx, verdicts).await?;
        let mut moves = Vec::new();
        let mut history = History::default();
        let mut freed: BTreeMap<String, i64> = BTreeMap::new();
        let mut ends = Ends::load(self, &tx, verdicts).await?;
        let mut judged: BTreeMap<String, Vec<Left<'_>>> = BTreeMap::new();
        let mut spent: BTreeMap<String, Spent> = BTreeMap::new();
        let mut news: Vec<Occurrence> = Vec::new();
        for verdict in verdicts {
            let Some(entry) = open.get_mut(&verdict.job()) else {
                settled.refused += 1;
                continue;
            };
            let was_in_flight = entry.job.state.is_in_flight();
            let Ok((mut settlement, ending)) = decide(entry, verdict, now, chance) else {
                settled.refused += 1;
                continue;
            };
            if let Some((elsewhere, to, lane)) = fallback::on_failure(
                &mut ways,
                verdict.job(),
                &entry.job,
                verdict,
                &settlement,
                now,
            ) {
                settlement = elsewhere;
                entry.row.lane = lane;
                moves.push(to);
            }
            let account = entry.row.account.clone().unwrap_or_default();
            ends.note(verdict, entry.row.at_most_once);
            if was_in_flight && !settlement.state.is_in_flight() {
                judged.entry(account.clone()).or_default().push(Left {
                    model: entry.row.model.clone(),
                    dispatched_at: Time::from_millis(entry.row.dispatched_at.unwrap_or_default()),
                    outcome: ending.as_ref().and_then(|ending| ending.outcome),
                });
            }
            if let Some(ending) = ending {
                if let Some(Outcome::Completed(answer)) = ending.outcome {
                    let used = answer.usage;
                    let client = spent.entry(entry.row.client.clone()).or_default();
                    *client = client.plus(Spent {
                        jobs: 1,
                        tokens: used.input_tokens.saturating_add(used.output_tokens),
                        cost_microusd: used.cost_microusd.unwrap_or_default(),
                    });
                }
                settled.attempts.push((account.clone(), ending.name));
                history.push(&entry.row, verdict, &ending)?;
            }
            if was_in_flight && !settlement.state.is_in_flight() {
                *freed.entry(account).or_default() += 1;
                settled.freed += 1;
            }
            apply(entry, verdict, &settlement, now);
            if settlement.state.is_terminal() {
                settled.ended.push((verdict.job(), settlement.state));
                if has_endpoints || entry.row.webhook.is_some() {
                    news.extend(entry.news(settlement.state));
                }
                settled.batches.extend(entry.row.batch.map(BatchId));
                if entry.row.has_children {
                    settled.parents.push(verdict.job());
                }
            } else {
                settled.moved.push((verdict.job(), settlement.state));
            }
            if settlement.state == State::Queued && settlement.due <= now {
                settled.requeued.push(entry.row.lane.clone());
            }
        }
        // Accounts are locked here, in one order for all.
        ends.write(self, &tx, freed.keys(), now).await?;
        let changed = open.into_values().filter(|open| open.changed).collect();
        // Jobs that used nothing that can be measured tell a budget nothing.
        spent.retain(|_, spent| spent.tokens > 0 || spent.cost_microusd > 0);
        let spent = clients::spend(self.slot, &spent, now);
        let writes = vec![write_jobs(changed), history.write(), spent];
        let cooling = release(&tx, writes, &freed).await?;
        fallback::write(&tx, moves).await?;
        settled.cooling = cooling::judge(&tx, &judged, &cooling, now, chance).await?;
        learned::write(&tx, verdicts).await?;
        settled.webhooks = webhooks::tell(&tx, &news, has_endpoints, now).await?;
        tx.commit().await?;
        Ok(settled)
    }

    /// Asks for a job's end. A queued one is cancelled at once; one in flight is marked, and ends
    /// when its worker has stopped. Gives the job's state, its attempt, and whether this call
    /// ended it; `None` when there is no such job.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn cancel(
        &self,
        id: JobId,
        now: Time,
    ) -> Result<Option<Result<(State, u32, bool), Refused>>, StoreError> {
        let tx = self.begin().await?;
        let Some(row) = job::Entity::find_by_id(id.0)
            .lock_exclusive()
            .into_partial_model::<JobRow>()
            .one(&tx)
            .await?
        else {
            return Ok(None);
        };
        let mut open = Open::new(row)?;
        let cancelled = match open.job.state.on(Event::Cancel) {
            Ok(cancelled) => cancelled,
            Err(refused) => return Ok(Some(Err(refused))),
        };
        let ends_now = open.job.state == State::Queued;
        if ends_now {
            open.job.state = cancelled;
            open.row.finished_at = Some(now.as_millis());
            open.row.error_code = Some("cancelled".into());
            open.row.error_message = Some("cancelled before it began".into());
        }
        open.job.cancel_requested = true;
        let answer = (open.job.state, open.job.attempt, ends_now);
        if ends_now {
            let news: Vec<Occurrence> = open.news(open.job.state).into_iter().collect();
            let has_endpoints = webhooks::has_endpoints(&tx).await?;
            webhooks::tell(&tx, &news, has_endpoints, now).await?;
        }
        write_jobs(vec![open]).execute(&tx).await?;
        tx.commit().await?;
        Ok(Some(Ok(answer)))
    }
}

impl Open {
    fn new(row: JobRow) -> Result<Self, StoreError> {
        let state = State::from_name(&row.state)
            .ok_or_else(|| StoreError::Internal(format!("state `{}` is not known", row.state)))?;
        let job = Job {
            state,
            attempt: count(row.attempt),
            failures: count(row.failures),
            losses: count(row.losses),
            max_attempts: count(row.max_attempts),
            delivery: if row.at_most_once {
                Delivery::AtMostOnce
            } else {
                Delivery::AtLeastOnce
            },
            cancel_requested: row.cancel_requested,
        };
        Ok(Self {
            row,
            job,
            changed: false,
        })
    }

    /// What is to be told of its having come into `state`.
    fn news(&self, state: State) -> Option<Occurrence> {
        let own = self.row.webhook.as_deref();
        Occurrence::of_job(JobId(self.row.id), state, &self.row.client, own)
    }
}

/// Locks the jobs; and whether anyone has an endpoint for webhooks.
async fn lock_jobs(
    tx: &DatabaseTransaction,
    verdicts: &[Verdict],
) -> Result<(HashMap<JobId, Open>, bool), StoreError> {
    let mut ids: Vec<Uuid> = verdicts.iter().map(|verdict| verdict.job().0).collect();
    ids.sort_unstable();
    ids.dedup();
    let sql = format!(
        "SELECT {JOB_ROW}, {} AS has_endpoints FROM v JOIN jobs ON jobs.id = v.job ORDER BY jobs.id {}",
        webhooks::HAS_ENDPOINTS,
        for_update(tx, "FOR UPDATE OF jobs")
    );
    let rows = Rows::new(&["job"], vec![Column::Id(ids)])
        .query(tx, &sql)
        .await?;
    let mut open = HashMap::with_capacity(rows.len());
    let mut has_endpoints = false;
    for row in rows {
        has_endpoints = row.try_get("", "has_endpoints")?;
        let row = JobRow::from_query_result(&row, "")?;
        open.insert(JobId(row.id), Open::new(row)?);
    }
    Ok((open, has_endpoints))
}

/// What a verdict makes of its job, and what it writes into the history if it ends the attempt.
fn decide<'a>(
    entry: &Open,
    verdict: &'a Verdict,
    now: Time,
    chance: fn() -> f64,
) -> Result<(Settlement, Option<Ending<'a>>), Refused> {
    let attempt = verdict.attempt();
    let lost = |name, why| Ending {
        name,
        error: Some((name, why)),
        started_at: None,
        finished_at: now,
        outcome: None,
    };
    match verdict {
        Verdict::Report(reply) => match &reply.report {
            Report::Started { .. } | Report::Leased { .. } => {
                Ok((entry.job.started(attempt, now)?, None))
            }
            Report::Finished {
                started_at,
                finished_at,
                outcome,
            } => {
                let settlement = entry.job.finished(attempt, outcome, now, chance())?;
                let ending = Ending {
                    name: outcome.name(),
                    error: outcome.error(),
                    started_at: *started_at,
                    finished_at: *finished_at,
                    outcome: Some(outcome),
                };
                Ok((settlement, Some(ending)))
            }
            Report::Redelivered => {
                let settlement = entry.job.lost(attempt, false, now)?;
                Ok((
                    settlement,
                    Some(lost("lost", "its worker died or lost its connection")),
                ))
            }
            Report::Returned { reason } => Ok((
                entry.job.returned(attempt, now)?,
                Some(lost("returned", reason)),
            )),
        },
        Verdict::Lost { began, .. } => {
            let settlement = entry.job.lost(attempt, *began, now)?;
            Ok((
                settlement,
                Some(lost("lost", "nobody was running it any more")),
            ))
        }
        Verdict::Unpublished { .. } => Ok((entry.job.returned(attempt, now)?, None)),
    }
}

/// Brings the row to its new state.
fn apply(entry: &mut Open, verdict: &Verdict, settlement: &Settlement, now: Time) {
    entry.changed = true;
    entry.job.state = settlement.state;
    entry.job.failures = settlement.failures;
    entry.job.losses = settlement.losses;
    let row = &mut entry.row;
    let mut error: Option<(String, String)> = None;
    if let Verdict::Report(reply) = verdict {
        row.worker = Some(reply.worker.clone());
        match &reply.report {
            Report::Started { at } => row.started_at = Some(at.as_millis()),
            Report::Leased { started_at, until } => {
                row.started_at = Some(started_at.as_millis());
                row.lease_until = Some(until.as_millis());
            }
            Report::Finished {
                started_at,
                outcome,
                ..
            } => {
                row.started_at = started_at.map(Time::as_millis);
                error = outcome
                    .error()
                    .map(|(code, detail)| (code.into(), detail.into()));
            }
            Report::Redelivered | Report::Returned { .. } => {}
        }
    }
    if let Some(code) = settlement.code {
        let words = "the worker that ran it is gone, and it must not or may no longer run again";
        error = Some((code.into(), words.into()));
    }
    match settlement.state {
        State::Queued => {
            row.account = None;
            row.worker = None;
            row.lease_until = None;
            row.run_at = settlement.due.as_millis();
            row.ready = settlement.due <= now;
        }
        State::Cancelled => {
            row.finished_at = Some(now.as_millis());
            error = Some(("cancelled".into(), "cancelled on request".into()));
        }
        state if state.is_terminal() => row.finished_at = Some(now.as_millis()),
        _ => {}
    }
    let (code, message) = error.unzip();
    row.error_code = code;
    row.error_message = message;
}

/// Writes what [`apply`] changed, in the order of ids.
fn write_jobs(mut open: Vec<Open>) -> Write {
    open.sort_unstable_by_key(|open| open.row.id);
    let mut ids = Vec::with_capacity(open.len());
    let mut texts: [Vec<String>; 5] = Default::default();
    let mut numbers: [Vec<i64>; 9] = Default::default();
    for Open { row, job, .. } in open {
        ids.push(row.id);
        let values = [
            job.state.as_str().to_owned(),
            row.account.unwrap_or_default(),
            row.worker.unwrap_or_default(),
            row.error_code.unwrap_or_default(),
            row.error_message.unwrap_or_default(),
        ];
        for (column, value) in texts.iter_mut().zip(values) {
            column.push(value);
        }
        let values = [
            i64::from(job.failures),
            i64::from(job.losses),
            i64::from(job.cancel_requested),
            i64::from(row.ready),
            row.run_at,
            row.started_at.unwrap_or(0),
            row.lease_until.unwrap_or(0),
            row.finished_at.unwrap_or(0),
            i64::from(job.attempt),
        ];
        for (column, value) in numbers.iter_mut().zip(values) {
            column.push(value);
        }
    }
    let [states, accounts, workers, codes, messages] = texts.map(Column::Text);
    let [
        failures,
        losses,
        cancel,
        ready,
        run_at,
        started,
        lease,
        finished,
        attempt,
    ] = numbers.map(Column::Number);
    Rows::new(
        &[
            "id",
            "state",
            "account",
            "worker",
            "error_code",
            "error_message",
            "failures",
            "losses",
            "cancel",
            "ready",
            "run_at",
            "started_at",
            "lease_until",
            "finished_at",
            "attempt",
        ],
        vec![
            Column::Id(ids),
            states,
            accounts,
            workers,
            codes,
            messages,
            failures,
            losses,
            cancel,
            ready,
            run_at,
            started,
            lease,
            finished,
            attempt,
        ],
    )
    .write(
        "UPDATE jobs SET state = v.state, account = NULLIF(v.account, ''), \
         worker = NULLIF(v.worker, ''), error_code = NULLIF(v.error_code, ''), \
         error_message = NULLIF(v.error_message, ''), failures = v.failures, losses = v.losses, \
         cancel_requested = (v.cancel = 1), ready = (v.ready = 1), run_at = v.run_at, \
         started_at = NULLIF(v.started_at, 0), lease_until = NULLIF(v.lease_until, 0), \
         finished_at = NULLIF(v.finished_at, 0) \
         FROM v WHERE jobs.id = v.id AND jobs.attempt = v.attempt",
    )
}

/// Writes, and gives slots back. Gives the accounts that cool.
async fn release(
    tx: &DatabaseTransaction,
    writes: Vec<Write>,
    freed: &BTreeMap<String, i64>,
) -> Result<BTreeSet<String>, StoreError> {
    if freed.is_empty() {
        write_together(tx, writes).await?;
        return Ok(BTreeSet::new());
    }
    let accounts = freed.keys().cloned().collect();
    let slots = freed.values().copied().collect();
    let rows = Rows::new(
        &["account", "freed"],
        vec![Column::Text(accounts), Column::Number(slots)],
    )
    .write(
        "UPDATE account_state SET in_flight = in_flight - v.freed FROM v \
         WHERE account_state.account = v.account \
         RETURNING account_state.account, account_state.cooldowns IS NOT NULL",
    );
    let rows = write_and_query(tx, writes, rows).await?;
    let mut cooling = BTreeSet::new();
    for row in rows {
        if row.try_get_by_index(1)? {
            cooling.insert(row.try_get_by_index(0)?);
        }
    }
    Ok(cooling)
}
