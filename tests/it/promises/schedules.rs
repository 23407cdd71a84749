//! Schedules fire at their times, each time once, whichever API process is first.

use std::time::Duration;

use serde_json::json;
use sluice_shared::{api::ScheduleView, domain::State};

use super::TWO_ACCOUNTS;
use crate::harness::{Cluster, Mode, eventually_within, on_every_mode};

on_every_mode!(a_time_that_comes_fires_once);

async fn a_time_that_comes_fires_once(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let apis = cluster.apis();
    let new = json!({"name": "every minute", "cron": "* * * * *", "job": {"prompt": "tick"}});
    let made: ScheduleView = apis[0].post("/api/schedules", &new).await.is(201);
    let other = &apis[apis.len() - 1];
    let url = format!("/api/schedules/{}", made.id);
    let due = made.next_at.unwrap();
    let fired = eventually_within(Duration::from_secs(80), "the schedule fires", async || {
        let schedule: ScheduleView = other.get(&url).await.is(200);
        (!schedule.runs.is_empty() && schedule.next_at > Some(due)).then_some(schedule)
    })
    .await;
    let run = fired.runs.last().unwrap();
    assert_eq!(run.due_at, due);
    assert!(run.fired_at.since(due) < Duration::from_secs(10), "{run:?}");
    let job = cluster.wait(run.job.unwrap()).await;
    assert_eq!(
        (job.state, job.client.as_str()),
        (State::Succeeded, "admin")
    );
    let jobs = other
        .list_all(&format!("metadata.schedule={}", made.id))
        .await;
    assert_eq!(jobs.len(), fired.runs.len());
}
