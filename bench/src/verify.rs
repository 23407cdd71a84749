//! After the load: are the results really there, and right?

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{
    http::{Client, Target},
    payload::prompt,
};

/// Jobs of one page: the most there may be.
const PAGE: usize = 500;
/// Jobs whose whole result is compared.
const SAMPLES: usize = 500;

/// A page of jobs, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Page {
    jobs: Vec<Listed>,
    next_cursor: Option<String>,
}

/// A job of the list, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
}

/// A job with its result and its attempts, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Whole {
    result: Option<Answer>,
    #[serde(default)]
    attempts: Vec<Attempt>,
}

/// An answer, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Answer {
    text: String,
}

/// When the provider was called and when it had answered, by the worker's clock. RFC 3339 in UTC
/// to the millisecond, and so it sorts as text.
#[derive(Debug, Deserialize)]
pub(crate) struct Attempt {
    started_at: Option<String>,
    finished_at: String,
}

/// Fails unless the API lists each of `ids` as succeeded, and a sample of them, even over all,
/// answers with the text of its own prompt.
pub(crate) async fn all_succeeded(target: &Target, ids: &[String]) -> Result<()> {
    let mut client = target.connect().await?;
    let wanted: HashSet<&str> = ids.iter().map(String::as_str).collect();
    ensure!(wanted.len() == ids.len(), "an id was given twice");
    let mut listed = list_succeeded(&mut client).await?;
    listed.retain(|job| wanted.contains(job.id.as_str()));
    let found: HashSet<&str> = listed.iter().map(|job| job.id.as_str()).collect();
    ensure!(listed.len() == found.len(), "a job is listed twice");
    ensure!(
        found.len() == wanted.len(),
        "{} of {} jobs are listed as succeeded",
        found.len(),
        wanted.len()
    );
    let sample = ids
        .iter()
        .enumerate()
        .step_by(ids.len().div_ceil(SAMPLES).max(1));
    for (number, id) in sample {
        answered(&mut client, number, id).await?;
    }
    Ok(())
}

/// Every attempt of these jobs. Fails unless each of them has the answer to its own prompt.
pub(crate) async fn attempts(target: &Target, ids: &[String]) -> Result<Vec<Attempt>> {
    let mut client = target.connect().await?;
    let mut attempts = Vec::with_capacity(ids.len());
    for (number, id) in ids.iter().enumerate() {
        attempts.extend(answered(&mut client, number, id).await?.attempts);
    }
    Ok(attempts)
}

async fn answered(client: &mut Client, number: usize, id: &str) -> Result<Whole> {
    let job: Whole = client.get(&format!("/api/jobs/{id}")).await?;
    let answer = job
        .result
        .as_ref()
        .with_context(|| format!("job {id} has no result"))?;
    ensure!(
        answer.text.contains(&prompt(number)),
        "job {id} has the answer of another"
    );
    Ok(job)
}

async fn list_succeeded(client: &mut Client) -> Result<Vec<Listed>> {
    let first = format!("/api/jobs?state=succeeded&limit={PAGE}");
    let mut page: Page = client.get(&first).await?;
    let mut jobs = page.jobs;
    while let Some(cursor) = page.next_cursor {
        page = client.get(&format!("{first}&cursor={cursor}")).await?;
        jobs.append(&mut page.jobs);
    }
    Ok(jobs)
}

/// How many of these were at the provider at once, at most.
pub(crate) fn most_at_once(attempts: &[Attempt]) -> Result<usize> {
    let mut events = Vec::with_capacity(attempts.len() * 2);
    for attempt in attempts {
        if let Some(started) = &attempt.started_at {
            events.push((started, 1));
            events.push((&attempt.finished_at, -1));
        }
    }
    // Of two events at the same moment the end comes first: -1 sorts before 1.
    events.sort_unstable();
    let (_, most) = events
        .iter()
        .fold((0_i64, 0_i64), |(now, most), (_, change)| {
            let now = now + change;
            (now, most.max(now))
        });
    Ok(usize::try_from(most)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(started: &str, finished: &str) -> Attempt {
        Attempt {
            started_at: Some(started.into()),
            finished_at: finished.into(),
        }
    }

    #[test]
    fn only_what_overlaps_counts() {
        let attempts = [
            attempt("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:05.000Z"),
            attempt("2026-01-01T00:00:01.000Z", "2026-01-01T00:00:06.000Z"),
            attempt("2026-01-01T00:00:05.000Z", "2026-01-01T00:00:10.000Z"),
        ];
        assert_eq!(most_at_once(&attempts).unwrap(), 2);
        assert_eq!(most_at_once(&[]).unwrap(), 0);
    }
}
