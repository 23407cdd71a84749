//! The results as they come.

use std::{cell::RefCell, collections::VecDeque, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use sluice_shared::domain::JobId;
use tokio::sync::mpsc;

use super::{
    progress::Progress,
    results::{Part, ResultLine},
};
use crate::{Failure, client::Client};

/// How long a poll waits when no other job is waiting for its turn.
const PATIENT: Duration = Duration::from_secs(30);
/// How long it waits when others are.
const BRIEF: Duration = Duration::from_secs(1);

/// What one look at a job found.
enum Look {
    Ended(Box<ResultLine>),
    NotYet(u64, JobId),
}

/// Waits for all jobs that come, so many at a time, and keeps their results. A job that takes
/// long goes back to the end of the line, so that it does not hide others that have ended.
pub(super) async fn collect(
    client: &Client,
    mut submitted: mpsc::UnboundedReceiver<(u64, JobId)>,
    concurrency: usize,
    part: &mut Part,
    progress: &RefCell<Progress>,
) -> Result<(), Failure> {
    let mut waiting = VecDeque::new();
    let mut looks = FuturesUnordered::new();
    let mut is_open = true;
    while is_open || !waiting.is_empty() || !looks.is_empty() {
        while looks.len() < concurrency
            && let Some((line, id)) = waiting.pop_front()
        {
            let patience = if waiting.is_empty() && !is_open {
                PATIENT
            } else {
                BRIEF
            };
            looks.push(look(client, line, id, patience, progress));
        }
        tokio::select! {
            job = submitted.recv(), if is_open => match job {
                Some(job) => waiting.push_back(job),
                None => is_open = false,
            },
            Some(found) = looks.next(), if !looks.is_empty() => match found? {
                Look::NotYet(line, id) => waiting.push_back((line, id)),
                Look::Ended(result) => {
                    part.add(&result).map_err(Failure::io("the results so far"))?;
                    progress.borrow_mut().ended(result.succeeded());
                }
            },
        }
    }
    Ok(())
}

async fn look(
    client: &Client,
    line: u64,
    id: JobId,
    patience: Duration,
    progress: &RefCell<Progress>,
) -> Result<Look, Failure> {
    let mut failures = 0;
    loop {
        match client.job(id, Some(patience)).await {
            Ok(job) if job.state.is_terminal() => {
                return Ok(Look::Ended(Box::new(ResultLine::of(line, job))));
            }
            Ok(_) => return Ok(Look::NotYet(line, id)),
            Err(error) if error.is_not_found() => {
                return Ok(Look::Ended(Box::new(ResultLine::unknown(line, id))));
            }
            Err(error) if error.is_transient() => {
                failures += 1;
                progress.borrow_mut().trouble(error.to_string());
                tokio::time::sleep(error.pause(failures)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
