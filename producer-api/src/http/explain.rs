//! Why a job is where it is, and what the whole queue waits for. What is so now is computed when
//! someone asks; what was so is told from memory.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use sluice_shared::{
    api::{
        AccountStatus, AttemptView, Candidate, DispatchChoice, Dispatched, Explanation, JobCount,
        JobView, LaneStatus, QueueStatus, StepView, Waiting,
    },
    clock,
    domain::{
        AccountId, JobId, Lane, Span, State as JobState, Step, Time,
        route::{self, Refusal, Seat, Strategy, Wait},
    },
};

use super::{
    Edge,
    extract::{Caller, Id, NoParams},
    jobs,
    problem::ApiError,
};
use crate::{
    app::App,
    decisions::Decision,
    store::{AccountRow, Counted, Way},
};

/// How long it may take to find out whether the broker is there.
const BROKER: Duration = Duration::from_secs(1);

/// Explain where a job is, and why.
///
/// What it waits for and what its accounts score are as they are now. How a dispatch came about is
/// told by the API process that decided it, for its last 20,000.
#[utoipa::path(
    get, path = "/api/jobs/{id}/explain", tag = "routing", security(("key" = ["read"])),
    params(("id" = JobId, Path, description = "the job")),
    responses(
        (status = 200, description = "What it waits for, and each of its dispatches.",
            body = Explanation),
        (status = 404, description = "`no_such_job`"),
    )
)]
pub(super) async fn explain_job(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    id: Id,
    _: NoParams,
) -> Result<Json<Explanation>, ApiError> {
    let app = &edge.app;
    let job = jobs::find(&edge, id.job()).await?;
    let lane = Lane::parse(&job.lane).map_err(ApiError::internal)?;
    let members = Members::of(&edge, &lane).await?;
    let strategy = app.routes.routing().of(&job.lane);
    let home = job.session.as_deref().and_then(|session| {
        let cursor = app.routes.cursor();
        cursor.lock().ok().and_then(|cursor| cursor.home(session))
    });
    let waits = waiting(&edge, &job, &members).await?;
    let seats: Vec<&Seat> = members.seats.iter().collect();
    let mut accounts = candidates(strategy, &seats, job.priority, clock::now());
    for candidate in &mut accounts {
        let refusal = members.refusals.get(&candidate.account).copied();
        candidate.refused = refusal.flatten();
        candidate.home = home.as_ref() == Some(&candidate.account);
    }
    best_first(&mut accounts);
    Ok(Json(Explanation {
        id: job.id,
        state: job.state,
        strategy,
        waits,
        accounts,
        dispatches: dispatches(app, &job),
        steps: edge
            .truth(app.store.way(job.id))
            .await?
            .map_or_else(Vec::new, |way| steps(&way, job.state)),
        lane: job.lane,
    }))
}

/// Show what waits, where and why.
///
/// The answer costs the same with a million jobs waiting as with ten thousand: each lane is counted
/// up to 10,000 jobs, 100,000 in all, and at most 100 lanes are listed.
#[utoipa::path(
    get, path = "/api/queue/status", tag = "routing", security(("key" = ["read"])),
    responses((status = 200, description = "The backlog by lane, and the accounts.",
        body = QueueStatus))
)]
pub(super) async fn queue_status(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    _: NoParams,
) -> Result<Json<QueueStatus>, ApiError> {
    let app = &edge.app;
    let rows = edge.truth(app.store.accounts()).await?;
    let backlogs = edge.truth(app.store.backlogs()).await?;
    let broker = broker_is_there(app).await;
    let (now, routing, speeds) = (clock::now(), app.routes.routing(), app.routes.speeds());
    let refusals: Vec<Option<Refusal>> = rows
        .iter()
        .map(|row| refusal(app, row, None, now))
        .collect();
    let mut lanes = Vec::with_capacity(backlogs.lanes.len());
    for backlog in backlogs.lanes {
        let lane = Lane::parse(&backlog.key).map_err(ApiError::internal)?;
        let members = rows.iter().zip(&refusals);
        let members: Vec<_> = members
            .filter(|(row, _)| lane.admits(&row.account))
            .map(|(row, known)| match known {
                // It may cool for the models of this lane only.
                None if !row.cooldowns.is_empty() => refusal(app, row, Some(&lane), now),
                known => *known,
            })
            .collect();
        lanes.push(LaneStatus {
            strategy: routing.of(&backlog.key),
            lane: backlog.key,
            waiting: count(backlog.waiting),
            oldest: backlog.oldest,
            accounts: members.len() as u64,
            wait: if broker {
                route::wait(members)
            } else {
                Wait::Broker
            },
        });
    }
    let waiting = lanes.iter().map(|lane| lane.waiting);
    let more = |counts: JobCount, lane: JobCount| JobCount {
        jobs: counts.jobs + lane.jobs,
        more: counts.more || lane.more,
    };
    let waiting = waiting.fold(JobCount::default(), more);
    Ok(Json(QueueStatus {
        waiting,
        scheduled: count(backlogs.scheduled),
        next_due: backlogs.next_due,
        in_flight: rows.iter().map(|row| u64::from(row.in_flight)).sum(),
        oldest: lanes.iter().filter_map(|lane| lane.oldest).min(),
        lanes,
        more_lanes: backlogs.more_lanes,
        accounts: rows
            .into_iter()
            .zip(refusals)
            .map(|(row, refused)| AccountStatus {
                time_to_result: speeds.get(&row.account.id).copied().map(Span),
                account: row.account.id,
                in_flight: row.in_flight,
                max_concurrency: row.account.max_concurrency,
                refused,
            })
            .collect(),
    }))
}

/// The accounts of a lane as they are now.
struct Members {
    seats: Vec<Seat>,
    refusals: HashMap<AccountId, Option<Refusal>>,
}

impl Members {
    async fn of(edge: &Edge, lane: &Lane) -> Result<Self, ApiError> {
        let app = &edge.app;
        let rows = edge.truth(app.store.accounts()).await?;
        let (now, speeds) = (clock::now(), app.routes.speeds());
        let rows: Vec<_> = rows
            .into_iter()
            .filter(|row| lane.admits(&row.account))
            .collect();
        let mut seats: Vec<Seat> = rows
            .iter()
            .map(|row| row.seat(speeds.get(&row.account.id).copied(), now))
            .collect();
        if let Ok(cursor) = app.routes.cursor().lock() {
            cursor.recall(&mut seats);
        }
        let refusals = rows
            .iter()
            .map(|row| (row.account.id.clone(), refusal(app, row, Some(lane), now)))
            .collect();
        Ok(Self { seats, refusals })
    }
}

/// Why an account takes no job now: none of this lane, or none at all.
fn refusal(app: &App, row: &AccountRow, lane: Option<&Lane>, now: Time) -> Option<Refusal> {
    let refusal = row.refusal(lane.map(|lane| lane.model.as_deref()), now);
    let is_out = matches!(refusal, Some(Refusal::Out { .. }));
    if !is_out && !app.workers.may_serve(&row.account.id) {
        return Some(Refusal::NoWorker);
    }
    refusal
}

async fn broker_is_there(app: &App) -> bool {
    let ready = tokio::time::timeout(BROKER, app.broker.ready()).await;
    matches!(ready, Ok(Ok(())))
}

async fn waiting(
    edge: &Edge,
    job: &JobView,
    members: &Members,
) -> Result<Option<Waiting>, ApiError> {
    if job.state != JobState::Queued {
        return Ok(None);
    }
    if let Some(until) = job.run_at {
        let wait = Wait::Time { until };
        return Ok(Some(Waiting {
            wait,
            detail: words(wait),
            ahead: None,
        }));
    }
    let wait = if broker_is_there(&edge.app).await {
        route::wait(members.refusals.values().copied())
    } else {
        Wait::Broker
    };
    let ahead = edge.truth(edge.app.store.ahead_of(job.id)).await?;
    Ok(Some(Waiting {
        wait,
        detail: words(wait),
        ahead: ahead.map(count),
    }))
}

fn words(wait: Wait) -> String {
    match wait {
        Wait::Time { until } => format!("it may not go before {until}"),
        Wait::Broker => {
            "the broker cannot be reached, and nothing is bound that cannot be sent".into()
        }
        Wait::Turn => "an account has room; it goes when those before it have gone".into(),
        Wait::FreeSlot => "no account of its lane has a free slot".into(),
        Wait::Window { until: Some(until) } => {
            format!("the windows of its lane's accounts are used up until {until}")
        }
        Wait::Window { until: None } => "the windows of its lane's accounts are used up".into(),
        Wait::Cooldown { until } => {
            format!("every account of its lane cools down; the first is back at {until}")
        }
        Wait::Worker => "no account of its lane has a live worker".into(),
        Wait::Operator => "every account of its lane is paused, refused or out of credit, until \
                           someone resumes one"
            .into(),
        Wait::Account => "its lane has no account any more".into(),
    }
}

fn candidates(strategy: Strategy, seats: &[&Seat], priority: i16, now: Time) -> Vec<Candidate> {
    let scores = route::scores(strategy, seats, priority, now);
    seats
        .iter()
        .zip(scores)
        .map(|(seat, score)| Candidate {
            account: seat.account.clone(),
            score: Some(score.value),
            kept_back: score.kept_back,
            home: false,
            chosen: false,
            in_flight: Some(seat.in_flight),
            time_to_result: seat.time_to_result.map(Span),
            refused: None,
        })
        .collect()
}

/// Those that could take the job, then those that could not; the higher score first.
fn best_first(candidates: &mut [Candidate]) {
    candidates.sort_by(|one, other| {
        let rank = |candidate: &Candidate| (candidate.refused.is_some(), candidate.kept_back);
        let score = |candidate: &Candidate| candidate.score.unwrap_or(f64::NEG_INFINITY);
        rank(one)
            .cmp(&rank(other))
            .then_with(|| score(other).total_cmp(&score(one)))
            .then_with(|| one.account.cmp(&other.account))
    });
}

fn dispatches(app: &App, job: &JobView) -> Vec<Dispatched> {
    let choice = |attempt: u32, account: &AccountId| {
        let decision = app.decisions.of(job.id, attempt)?;
        choice(app, &decision, account)
    };
    let ended = job.attempts.iter().flatten();
    let mut dispatches: Vec<Dispatched> = ended
        .map(|attempt: &AttemptView| Dispatched {
            attempt: attempt.number,
            account: attempt.account.clone(),
            at: attempt.dispatched_at,
            outcome: Some(attempt.outcome.clone()),
            error: attempt.error.clone(),
            choice: choice(attempt.number, &attempt.account),
        })
        .collect();
    if let (true, Some(account), Some(at)) =
        (job.state.is_in_flight(), &job.account, job.dispatched_at)
    {
        dispatches.push(Dispatched {
            attempt: job.attempt,
            account: account.clone(),
            at,
            outcome: None,
            error: None,
            choice: choice(job.attempt, account),
        });
    }
    dispatches
}

fn choice(app: &App, decision: &Decision, chosen: &AccountId) -> Option<DispatchChoice> {
    let round = &decision.round;
    let (lane, members) = round.lanes.get(&decision.choice.lane)?;
    let seats: Vec<&Seat> = members
        .seats
        .iter()
        .filter_map(|seat| round.seats.get(*seat))
        .collect();
    let mut accounts = candidates(members.strategy, &seats, decision.choice.priority, round.at);
    for (candidate, seat) in accounts.iter_mut().zip(&seats) {
        candidate.chosen = candidate.account == *chosen;
        candidate.home = candidate.chosen && decision.choice.by_session;
        if seat.room() == 0 {
            candidate.refused = Some(match seat.free_slots {
                0 => Refusal::NoFreeSlot,
                _ => Refusal::WindowFull { until: None },
            });
        }
    }
    let known = app.roster.accounts();
    let in_lane = |account: &AccountId| {
        let mut known = known.iter();
        known.any(|known| known.id == *account && lane.admits(known))
    };
    let out = round.refused.iter().filter(|(account, _)| in_lane(account));
    accounts.extend(out.map(|(account, refusal)| Candidate {
        account: account.clone(),
        score: None,
        kept_back: false,
        home: false,
        chosen: false,
        in_flight: None,
        time_to_result: None,
        refused: Some(*refusal),
    }));
    best_first(&mut accounts);
    Some(DispatchChoice {
        strategy: members.strategy,
        by_session: decision.choice.by_session,
        accounts,
    })
}

fn steps(way: &Way, state: JobState) -> Vec<StepView> {
    let waits = state == JobState::Queued;
    let view = |(index, step): (usize, &Step)| StepView {
        lane: step.lane.clone(),
        model: step.model.clone(),
        after: step
            .after_ms
            .map(|millis| Span(Duration::from_millis(millis))),
        on_failure: step.on_failure,
        current: index == way.step,
        due: way.due.filter(|_| waits && index == way.step + 1),
    };
    way.steps.iter().enumerate().map(view).collect()
}

fn count(counted: Counted) -> JobCount {
    JobCount {
        jobs: counted.jobs,
        more: counted.more,
    }
}
