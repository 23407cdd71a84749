//! The load, and what is measured under it. Every load is bounded in count, and its caller bounds
//! it in time.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use tokio::time::sleep;

use crate::{
    http::Target,
    payload::prompt,
    stats::{Latency, per_second},
};

/// Jobs of one array submit.
pub(crate) const ARRAY: usize = 100;
/// How often the end is looked for.
const END_POLL: Duration = Duration::from_millis(20);
/// The counter of jobs that reached a terminal state, on the server's metrics page.
const FINISHED: &str = "sluice_jobs_finished_total";
/// The counter of attempts that were dispatched.
const DISPATCHED: &str = "sluice_attempts_dispatched_total";
/// Jobs whose bodies are in memory at once.
const CHUNK: usize = 50_000;

/// The receipt of one job, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Receipt {
    id: String,
}

/// The receipts of an array of jobs.
#[derive(Debug, Deserialize)]
struct Receipts {
    jobs: Vec<Receipt>,
}

/// A job, as far as it is read here.
#[derive(Debug, Deserialize)]
struct JobState {
    state: String,
}

/// A job to be submitted alone. One that is `delayed` does not run while anybody looks.
fn single(number: usize, delayed: bool) -> String {
    let delay = if delayed { r#","delay":"1h""# } else { "" };
    format!(r#"{{"prompt":"{}"{delay}}}"#, prompt(number))
}

/// Arrays of the jobs with these numbers.
fn arrays(jobs: Range<usize>, delayed: bool) -> Vec<Bytes> {
    jobs.clone()
        .step_by(ARRAY)
        .map(|first| {
            let numbers = first..jobs.end.min(first + ARRAY);
            let array: Vec<String> = numbers.map(|number| single(number, delayed)).collect();
            Bytes::from(format!("[{}]", array.join(",")))
        })
        .collect()
}

/// Sends every body over as many connections; returns the answers in the order of the bodies, and
/// the time from the first byte to the last answer.
async fn submit_all(
    target: &Target,
    bodies: Vec<Bytes>,
    connections: usize,
) -> Result<(Vec<Bytes>, Duration)> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(target.connect().await?);
    }
    let bodies = bodies.into_iter().enumerate();
    let queue = std::cell::RefCell::new(bodies);
    let start = Instant::now();
    let sent = clients.into_iter().map(|mut client| {
        let queue = &queue;
        async move {
            let mut answers = Vec::new();
            loop {
                // A statement of its own, so that the queue is not held while the server works.
                let next = queue.borrow_mut().next();
                let Some((number, body)) = next else { break };
                answers.push((number, client.submit(body).await?));
            }
            anyhow::Ok(answers)
        }
    });
    let answers: Vec<Vec<(usize, Bytes)>> = stream::iter(sent)
        .buffer_unordered(connections)
        .try_collect()
        .await?;
    let elapsed = start.elapsed();
    let mut answers: Vec<(usize, Bytes)> = answers.into_iter().flatten().collect();
    answers.sort_unstable_by_key(|(number, _)| *number);
    Ok((
        answers.into_iter().map(|(_, answer)| answer).collect(),
        elapsed,
    ))
}

/// Jobs a second accepted from single submits. None of them runs.
pub(crate) async fn submit_singles(
    target: &Target,
    jobs: usize,
    connections: usize,
) -> Result<f64> {
    let bodies = (0..jobs)
        .map(|number| Bytes::from(single(number, true)))
        .collect();
    let (answers, elapsed) = submit_all(target, bodies, connections).await?;
    Ok(per_second(answers.len(), elapsed))
}

/// Jobs a second accepted from arrays. None of them runs.
pub(crate) async fn submit_arrays(target: &Target, jobs: usize, connections: usize) -> Result<f64> {
    let (answers, elapsed) = submit_all(target, arrays(0..jobs, true), connections).await?;
    let accepted = parse_receipts(&answers)?.len();
    ensure!(accepted == jobs, "{accepted} of {jobs} jobs have a receipt");
    Ok(per_second(jobs, elapsed))
}

/// Submits jobs that may run as soon as somebody runs them.
pub(crate) async fn fill(target: &Target, jobs: usize, connections: usize) -> Result<()> {
    for first in (0..jobs).step_by(CHUNK) {
        let chunk = first..jobs.min(first + CHUNK);
        let expected = chunk.len();
        let (answers, _) = submit_all(target, arrays(chunk, false), connections).await?;
        let accepted = parse_receipts(&answers)?.len();
        ensure!(
            accepted == expected,
            "{accepted} of {expected} jobs have a receipt"
        );
    }
    Ok(())
}

/// Jobs a second that are dispatched, between the first `from` and the first `to` of them.
pub(crate) async fn dispatch_rate(target: &Target, from: usize, to: usize) -> Result<f64> {
    let mut client = target.connect().await?;
    let mut begun: Option<(Instant, u64)> = None;
    loop {
        let dispatched = counted(DISPATCHED, &client.get_text("/metrics").await?)?;
        let now = Instant::now();
        match begun {
            None if dispatched >= from as u64 => begun = Some((now, dispatched)),
            Some((since, before)) if dispatched >= to as u64 => {
                let jobs = usize::try_from(dispatched - before)?;
                return Ok(per_second(jobs, now - since));
            }
            _ => {}
        }
        sleep(END_POLL).await;
    }
}

/// Submits jobs in arrays while they run. Returns the time until all were in a terminal state, and
/// their ids in the order of their prompts.
pub(crate) async fn run_all(
    target: &Target,
    jobs: usize,
    connections: usize,
) -> Result<(Duration, Vec<String>)> {
    let bodies = arrays(0..jobs, false);
    let before = finished(target).await?;
    let start = Instant::now();
    let ended = async {
        let mut client = target.connect().await?;
        while counted(FINISHED, &client.get_text("/metrics").await?)? < before + jobs as u64 {
            sleep(END_POLL).await;
        }
        Ok(start.elapsed())
    };
    let ((answers, _), elapsed) =
        futures::try_join!(submit_all(target, bodies, connections), ended)?;
    let ids = parse_receipts(&answers)?;
    ensure!(
        ids.len() == jobs,
        "{} of {jobs} jobs have a receipt",
        ids.len()
    );
    Ok((elapsed, ids))
}

/// From submit to result, one job at a time.
pub(crate) async fn one_at_a_time(target: &Target, jobs: usize) -> Result<Latency> {
    let mut client = target.connect().await?;
    let mut samples = Vec::with_capacity(jobs);
    for number in 0..jobs {
        let body = Bytes::from(single(number, false));
        let start = Instant::now();
        let receipt: Receipt = serde_json::from_slice(&client.submit(body).await?)?;
        let job: JobState = client
            .get(&format!("/api/jobs/{}?wait=30s", receipt.id))
            .await?;
        samples.push(start.elapsed());
        ensure!(
            job.state == "succeeded",
            "job {} is {}",
            receipt.id,
            job.state
        );
    }
    Latency::of(samples)
}

fn parse_receipts(answers: &[Bytes]) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for answer in answers {
        let receipts: Receipts = serde_json::from_slice(answer)?;
        ids.extend(receipts.jobs.into_iter().map(|receipt| receipt.id));
    }
    Ok(ids)
}

/// Jobs that have reached a terminal state since the server started.
async fn finished(target: &Target) -> Result<u64> {
    counted(
        FINISHED,
        &target.connect().await?.get_text("/metrics").await?,
    )
}

/// A counter, summed over its labels; one that is not there yet counts nothing.
fn counted(counter: &str, metrics: &str) -> Result<u64> {
    metrics
        .lines()
        .filter(|line| {
            let rest = line.strip_prefix(counter);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .map(|line| {
            let (_, value) = line.rsplit_once(' ').context("a metric without a value")?;
            Ok(value.parse::<u64>()?)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json() {
        let body: serde_json::Value =
            serde_json::from_slice(&arrays(0..ARRAY + 1, true)[1]).unwrap();
        assert_eq!(body[0]["prompt"], prompt(ARRAY));
        assert_eq!(body[0]["delay"], "1h");
        assert_eq!(arrays(0..ARRAY + 1, false).len(), 2);
    }

    #[test]
    fn the_counter_is_summed_over_its_labels() {
        let metrics = "# TYPE sluice_jobs_finished_total counter\n\
                       sluice_jobs_finished_total{state=\"succeeded\"} 40\n\
                       sluice_jobs_finished_total{state=\"failed\"} 2\n\
                       sluice_jobs_finished_total_other 7\n";
        assert_eq!(counted(FINISHED, metrics).unwrap(), 42);
        assert_eq!(counted(FINISHED, "").unwrap(), 0);
    }
}
