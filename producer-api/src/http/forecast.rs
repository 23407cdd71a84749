//! Forecasts: when jobs that wait, or would be submitted, will be done.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{RawQuery, State},
};
use sluice_shared::{
    api::{AccountForecast, Bottleneck, Forecast, JobView, Scope},
    clock,
    domain::{
        JobId, Lane, State as JobState, Time,
        forecast::{self, Cause, LimitKind, Outlook, Server, Work},
        route::Strategy,
    },
};

use super::{
    Edge,
    extract::{Caller, Params, bad_parameter},
    lane,
    problem::ApiError,
    submit::Flaws,
};
use crate::{
    forecast::{Measured, servers_of},
    store::{ClientRow, MOST_AHEAD, Place, Waiting},
};

const NAMES: [&str; 6] = ["jobs", "model", "account", "tags", "priority", "per_hour"];

const MOST_JOBS: u64 = 10_000_000;
const MOST_PER_HOUR: u64 = 10_000_000;
const MOST_ACCOUNTS: u32 = 1_000;

/// Lumps that a batch is cut into, and the jobs before a single one.
const DETAIL: u64 = 5_000;
const DETAIL_OF_ONE: u64 = 500;

/// What is asked for.
struct Asked {
    lane: Lane,
    jobs: u64,
    priority: i16,
    per_hour: Option<u64>,
}

/// Say when a batch would be done.
///
/// The dispatcher's own planner runs ahead in virtual time, over what waits and runs now, with
/// how long the last jobs took. With `per_hour` it also says how many accounts like the slowest
/// of the lane it would take to keep up with so many jobs an hour.
#[utoipa::path(
    get, path = "/api/forecast", tag = "jobs", security(("key" = ["read"])),
    params(
        ("jobs" = Option<u64>, Query, description = "how many jobs, default 1", minimum = 1, maximum = 10_000_000),
        ("model" = Option<String>, Query, description = "the model they ask for"),
        ("account" = Option<String>, Query, description = "the account they are pinned to"),
        ("tags" = Option<String>, Query, description = "the tags they ask for, separated by commas"),
        ("priority" = Option<i16>, Query, description = "their priority, default 0", minimum = -100, maximum = 100),
        ("per_hour" = Option<u64>, Query, description = "a rate to find the number of accounts for",
            minimum = 1, maximum = 10_000_000),
    ),
    responses(
        (status = 200, description = "What would become of them.", body = Forecast),
        (status = 422, description = "`no_such_lane`"),
    )
)]
pub(super) async fn forecast(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<Forecast>, ApiError> {
    caller.needs(Scope::Read)?;
    let asked = parse(query.as_deref())?;
    let mut flaws = Flaws::default();
    lane::check(&asked.lane, &edge.app.roster.accounts(), &mut flaws);
    flaws.refuse()?;
    let now = clock::now();
    let measured = edge.truth(edge.app.measured(now)).await?;
    let waiting = edge.truth(edge.app.store.waiting()).await?;
    let clients = edge.truth(edge.app.store.clients()).await?;
    let work = batch(&asked, &waiting, &caller.0.name, &measured, &clients);
    let strategy = edge.app.config.dispatch.strategy;
    // Not here, where it would keep other requests waiting.
    let view = move || view(&asked, &measured, &work, strategy, now);
    let view = tokio::task::spawn_blocking(view).await;
    Ok(Json(view.map_err(ApiError::internal)?))
}

fn parse(query: Option<&str>) -> Result<Asked, ApiError> {
    let params = Params::parse(query, |name| NAMES.contains(&name))?;
    let number = |name: &'static str, most: u64| {
        let number = params.parsed::<u64>(name, |text, _| format!("is `{text}`, not a number"))?;
        match number {
            Some(number) if !(1..=most).contains(&number) => Err(bad_parameter(
                name,
                &format!("is {number}; it goes from 1 to {most}"),
            )),
            number => Ok(number),
        }
    };
    let priority = params
        .parsed::<i16>("priority", |text, _| format!("is `{text}`, not a number"))?
        .unwrap_or(0);
    if !(-100..=100).contains(&priority) {
        let detail = format!("is {priority}; it goes from -100 to 100");
        return Err(bad_parameter("priority", &detail));
    }
    let account = params.parsed("account", |text, _| format!("is `{text}`, not an account"))?;
    let model = params.get("model").filter(|model| !model.is_empty());
    let tags = params.get("tags").unwrap_or_default().split(',');
    let tags = tags
        .map(str::trim)
        .filter(|tag| !tag.is_empty())
        .map(str::to_owned);
    Ok(Asked {
        lane: Lane::new(account, model.map(str::to_owned), tags.collect()),
        jobs: number("jobs", MOST_JOBS)?.unwrap_or(1),
        priority,
        per_hour: number("per_hour", MOST_PER_HOUR)?,
    })
}

/// What waits, and then the batch.
fn batch<'a>(
    asked: &Asked,
    waiting: &'a [Waiting],
    client: &'a str,
    measured: &[Measured],
    clients: &HashMap<String, ClientRow>,
) -> Vec<Work> {
    let key = asked.lane.key();
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut of = |client: &'a str, lane: &Lane, priority, behind, jobs| {
        let set = clients.get(client);
        let number = numbers.len();
        Work {
            servers: servers_of(lane, measured),
            priority,
            client: *numbers.entry(client).or_insert(number),
            weight: set.map_or(1, |set| set.weight),
            most_running: set.and_then(|set| set.quota.max_running),
            behind,
            jobs,
        }
    };
    let mut behind = 0;
    let mut work = Vec::with_capacity(waiting.len() + 1);
    for waiting in waiting {
        if waiting.client == client && waiting.lane == key && waiting.priority == asked.priority {
            behind = waiting.jobs;
        }
        if let Ok(lane) = Lane::parse(&waiting.lane) {
            work.push(of(
                &waiting.client,
                &lane,
                waiting.priority,
                0,
                waiting.jobs,
            ));
        }
    }
    work.push(of(client, &asked.lane, asked.priority, behind, asked.jobs));
    work
}

fn view(
    asked: &Asked,
    measured: &[Measured],
    work: &[Work],
    strategy: Strategy,
    now: Time,
) -> Forecast {
    let servers: Vec<Server> = measured
        .iter()
        .map(|measured| measured.server.clone())
        .collect();
    let outlook = forecast::forecast(&servers, work, strategy, DETAIL);
    let own = work.last().map_or(&[][..], |work| &work.servers);
    let slowest = own
        .iter()
        .map(|index| &servers[*index])
        .max_by_key(|server| (server.takes.time, std::cmp::Reverse(server.slots)));
    let needed = |per_hour| {
        let mut like = slowest?.clone();
        // One that is out now would be of use like any other.
        like.slots = measured
            .iter()
            .find(|measured| measured.account.id == like.account)?
            .account
            .max_concurrency;
        forecast::accounts_needed(&like, per_hour, strategy, MOST_ACCOUNTS)
    };
    let span = outlook.end.zip(outlook.first_start);
    Forecast {
        jobs: asked.jobs,
        lane: asked.lane.key(),
        waiting: work.iter().rev().skip(1).map(|work| work.jobs).sum(),
        starts_at: outlook.first_start.map(|start| now + start),
        done_at: outlook.end.map(|end| now + end),
        jobs_per_hour: span.map(|(end, start)| rate(asked.jobs, end.saturating_sub(start))),
        bottleneck: bottleneck(&outlook, &servers, own),
        accounts: own
            .iter()
            .map(|index| AccountForecast {
                id: measured[*index].account.id.clone(),
                jobs: outlook.by_server[*index],
                millis_per_job: millis(servers[*index].takes.time),
                measured: measured[*index].attempts,
            })
            .collect(),
        accounts_needed: asked.per_hour.and_then(needed),
    }
}

/// When jobs that wait or run already may be done, by what waits now; none when nobody can say,
/// or never. The client's other jobs of that lane are taken to go first.
pub(super) async fn end_of(
    edge: &Edge,
    client: &str,
    lane: &str,
    priority: i16,
    jobs: u64,
) -> Result<Option<Time>, ApiError> {
    let Ok(lane) = Lane::parse(lane) else {
        return Ok(None);
    };
    let now = clock::now();
    let measured = edge.truth(edge.app.measured(now)).await?;
    let mut waiting = edge.truth(edge.app.store.waiting()).await?;
    let clients = edge.truth(edge.app.store.clients()).await?;
    let key = lane.key();
    for of in &mut waiting {
        if of.client == client && of.lane == key && of.priority == priority {
            of.jobs = of.jobs.saturating_sub(jobs);
        }
    }
    let asked = Asked {
        lane,
        jobs,
        priority,
        per_hour: None,
    };
    let work = batch(&asked, &waiting, client, &measured, &clients);
    let strategy = edge.app.config.dispatch.strategy;
    let look = move || {
        let servers: Vec<Server> = measured.into_iter().map(|one| one.server).collect();
        forecast::forecast(&servers, &work, strategy, DETAIL).end
    };
    let end = tokio::task::spawn_blocking(look)
        .await
        .map_err(ApiError::internal)?;
    Ok(end.map(|end| now + end))
}

fn rate(jobs: u64, span: Duration) -> u64 {
    let per_hour = u128::from(jobs) * 3_600_000 / span.as_millis().max(1);
    u64::try_from(per_hour).unwrap_or(u64::MAX)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn bottleneck(outlook: &Outlook, servers: &[Server], own: &[usize]) -> Option<Bottleneck> {
    let none_can = own.iter().all(|index| servers[*index].slots == 0);
    if outlook.end.is_none() && none_can {
        return Some(Bottleneck {
            kind: "no_account".into(),
            account: None,
            limit: None,
            window: None,
        });
    }
    let (index, cause) = outlook.bottleneck?;
    let server = servers.get(index)?;
    let mut bottleneck = Bottleneck {
        kind: "slots".into(),
        account: Some(server.account.clone()),
        limit: Some(server.slots.into()),
        window: None,
    };
    match cause {
        Cause::Slots => {}
        Cause::Quota => {
            bottleneck.kind = "max_running".into();
            bottleneck.account = None;
            bottleneck.limit = None;
        }
        Cause::Cooldown => {
            bottleneck.kind = "cooldown".into();
            bottleneck.limit = None;
        }
        Cause::Limit(window) => {
            let limit = server.windows.get(window)?.limit;
            bottleneck.kind = match limit.kind {
                LimitKind::Requests => "requests",
                LimitKind::InputTokens => "input_tokens",
                LimitKind::OutputTokens => "output_tokens",
                LimitKind::Cost => "cost",
            }
            .into();
            bottleneck.limit = Some(limit.limit);
            bottleneck.window = Some(limit.window);
        }
    }
    Some(bottleneck)
}

/// Says of a job that waits where it stands and when it may start. A forecast that cannot be made
/// is left out: the job itself is what was asked for.
pub(super) async fn tell(edge: &Edge, job: &mut JobView) -> Result<(), ApiError> {
    if job.state != JobState::Queued || job.run_at.is_some() {
        return Ok(());
    }
    let Some(place) = edge.truth(edge.app.store.place(job.id)).await? else {
        return Ok(());
    };
    job.position = Some(place.ahead + 1);
    let set = edge.truth(edge.app.store.client(&job.client)).await?;
    let may_be_held = set.quota.max_running.is_some() || set.quota.has_budget();
    if place.ahead < MOST_AHEAD && !may_be_held {
        let now = clock::now();
        let measured = edge.truth(edge.app.measured(now)).await?;
        let start = start_of(&place, &measured, edge.app.config.dispatch.strategy);
        job.estimated_start_at = start.map(|start| now + start);
    }
    Ok(())
}

fn start_of(place: &Place, measured: &[Measured], strategy: Strategy) -> Option<Duration> {
    let servers: Vec<Server> = measured
        .iter()
        .map(|measured| measured.server.clone())
        .collect();
    let here = Lane::parse(&place.lane).ok()?;
    let own = servers_of(&here, measured);
    let mut work = Vec::new();
    let ahead = place
        .elsewhere
        .iter()
        .map(|(lane, jobs)| (lane.as_str(), *jobs));
    for (lane, jobs) in ahead.chain([(place.lane.as_str(), place.ahead)]) {
        let servers = servers_of(&Lane::parse(lane).ok()?, measured);
        // Lanes that share no account with it are nothing to it.
        if jobs > 0 && servers.iter().any(|server| own.contains(server)) {
            work.push(Work {
                servers,
                priority: 1,
                client: 0,
                weight: 1,
                most_running: None,
                behind: 0,
                jobs,
            });
        }
    }
    work.push(Work {
        servers: own,
        priority: 0,
        client: 1,
        weight: 1,
        most_running: None,
        behind: 0,
        jobs: 1,
    });
    forecast::forecast(&servers, &work, strategy, DETAIL_OF_ONE).first_start
}

/// A job with what is known of its start.
pub(super) async fn found(edge: &Edge, id: JobId) -> Result<JobView, ApiError> {
    let mut job = super::jobs::find(edge, id).await?;
    tell(edge, &mut job).await?;
    Ok(job)
}
