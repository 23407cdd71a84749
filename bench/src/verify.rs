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
pub(crate) struct Listed {
    id: String,
    started_at: Option<String>,
    finished_at: Option<String>,
}

/// A job with its result, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Answered {
    result: Option<Answer>,
}

/// An answer, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Answer {
    text: String,
}

/// Fails unless the API lists each of `ids` as succeeded, and a sample of them, even over all,
/// answers with the text of its own prompt. Returns the jobs as listed.
pub(crate) async fn all_succeeded(target: &Target, ids: &[String]) -> Result<Vec<Listed>> {
    let mut client = target.connect().await?;
    let wanted: HashSet<&str> = ids.iter().map(String::as_str).collect();
    ensure!(wanted.len() == ids.len(), "an id was given twice");
    let listed: Vec<Listed> = list_succeeded(&mut client)
        .await?
        .into_iter()
        .filter(|job| wanted.contains(job.id.as_str()))
        .collect();
    let found: HashSet<&str> = listed.iter().map(|job| job.id.as_str()).collect();
    ensure!(listed.len() == found.len(), "a job is listed twice");
    ensure!(
        found.len() == wanted.len(),
        "{} of {} jobs are listed as succeeded",
        found.len(),
        wanted.len()
    );
    for (number, id) in ids
        .iter()
        .enumerate()
        .step_by(ids.len().div_ceil(SAMPLES).max(1))
    {
        let job: Answered = client.get(&format!("/api/jobs/{id}")).await?;
        let answer = job
            .result
            .with_context(|| format!("job {id} succeeded without a result"))?;
        ensure!(
            answer.text.contains(&prompt(number)),
            "job {id} has the answer of another"
        );
    }
    Ok(listed)
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

/// How many of these jobs were at the provider at once, at most. Times are as the API gives them,
/// RFC 3339 in UTC to the millisecond, and so sort as text.
pub(crate) fn most_at_once(jobs: &[Listed]) -> Result<usize> {
    let mut events = Vec::with_capacity(jobs.len() * 2);
    for job in jobs {
        let started = job
            .started_at
            .as_deref()
            .context("a job ended that never started")?;
        let finished = job
            .finished_at
            .as_deref()
            .context("a job ended at no time")?;
        events.push((started, 1));
        events.push((finished, -1));
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

    fn job(started: &str, finished: &str) -> Listed {
        Listed {
            id: String::new(),
            started_at: Some(started.into()),
            finished_at: Some(finished.into()),
        }
    }

    #[test]
    fn only_what_overlaps_counts() {
        let jobs = [
            job("2026-01-01T00:00:00.000Z", "2026-01-01T00:00:05.000Z"),
            job("2026-01-01T00:00:01.000Z", "2026-01-01T00:00:06.000Z"),
            job("2026-01-01T00:00:05.000Z", "2026-01-01T00:00:10.000Z"),
        ];
        assert_eq!(most_at_once(&jobs).unwrap(), 2);
        assert_eq!(most_at_once(&[]).unwrap(), 0);
    }
}
