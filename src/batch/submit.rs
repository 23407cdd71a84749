//! Chunk by chunk to the API.

use std::{cell::RefCell, fs::File, io::BufReader};

use sluice_shared::{
    api::{NewJob, Problem},
    clock,
    domain::JobId,
};
use tokio::sync::mpsc;

use super::{
    input::Lines,
    journal::Journal,
    plan::{Chunk, Content, idempotency_key},
    progress::Progress,
    run::{Options, show},
};
use crate::{
    Failure,
    client::{Client, ClientError},
};

/// Tries of a chunk that the server says it cannot take for a reason of its own.
const SERVER_FAULTS: u32 = 10;

/// Submits what is not submitted yet, one chunk after the other.
pub(super) async fn all(
    client: &Client,
    options: &Options<'_>,
    lines: &mut Lines<BufReader<File>>,
    chunks: &[Chunk],
    journal: &mut Journal,
    found: mpsc::UnboundedSender<(u64, JobId)>,
    progress: &RefCell<Progress>,
) -> Result<(), Failure> {
    for (number, chunk) in chunks.iter().enumerate() {
        if journal
            .standing()
            .sent
            .get(number)
            .is_some_and(|sent| sent.ids.is_some())
        {
            continue;
        }
        let body = read_chunk(lines, options, chunk)?;
        let key = idempotency_key(journal.standing().batch, number, &chunk.hash);
        journal.sending(number, chunk, clock::now())?;
        let ids = match send(client, &body, &key, progress).await {
            Ok(ids) if ids.len() == chunk.lines.len() => ids,
            Ok(ids) => {
                return Err(Failure::usage(format!(
                    "{} jobs were sent and {} receipts came back: is SLUICE_URL a Sluice?",
                    chunk.lines.len(),
                    ids.len()
                )));
            }
            Err(error) => {
                // A clear no to the whole chunk: its lines are free to be mended.
                if matches!(error.status(), Some(400 | 401 | 403 | 413 | 422)) {
                    journal.refused(number)?;
                }
                return Err(refusal(error, chunk));
            }
        };
        for (line, id) in chunk.lines.iter().zip(&ids) {
            // Nobody listens with --no-wait.
            let _ = found.send((*line, *id));
        }
        progress.borrow_mut().submitted(ids.len() as u64);
        journal.accepted(number, ids)?;
    }
    Ok(())
}

fn read_chunk(
    lines: &mut Lines<BufReader<File>>,
    options: &Options<'_>,
    chunk: &Chunk,
) -> Result<Vec<u8>, Failure> {
    let io = || Failure::io(show(options.file));
    let changed = || {
        Failure::usage(format!(
            "{} changed while it was read; run again",
            show(options.file)
        ))
    };
    let first = chunk.lines.first().copied().unwrap_or(1);
    lines.seek(first, chunk.offset).map_err(io())?;
    let mut content = Content::default();
    let mut body = vec![b'['];
    for expected in &chunk.lines {
        let line = lines.next().map_err(io())?.ok_or_else(changed)?;
        let mut job = line.job.map_err(|_| changed())?;
        if line.number != *expected {
            return Err(changed());
        }
        options.defaults.fill(&mut job);
        let job = to_body(&job)?;
        content.add(&job);
        if body.len() > 1 {
            body.push(b',');
        }
        body.extend_from_slice(&job);
    }
    body.push(b']');
    if content.finish() == chunk.hash {
        Ok(body)
    } else {
        Err(changed())
    }
}

/// Sends a chunk until it is accepted or refused.
async fn send(
    client: &Client,
    body: &[u8],
    key: &str,
    progress: &RefCell<Progress>,
) -> Result<Vec<JobId>, ClientError> {
    let mut failures = 0;
    loop {
        match client.submit_array(body.to_vec(), key).await {
            Ok(receipts) => {
                return Ok(receipts
                    .jobs
                    .into_iter()
                    .map(|receipt| receipt.id)
                    .collect());
            }
            Err(error) => {
                failures += 1;
                // A conflict is an earlier try of the same chunk that is still under way.
                let is_fault = matches!(error.status(), Some(409 | 500));
                let may_pass = error.is_transient() || is_fault;
                if !may_pass || (is_fault && failures >= SERVER_FAULTS) {
                    return Err(error);
                }
                progress.borrow_mut().trouble(error.to_string());
                tokio::time::sleep(error.pause(failures)).await;
            }
        }
    }
}

/// A refused chunk in terms of the file: `[3].prompt` becomes the line that it is.
fn refusal(error: ClientError, chunk: &Chunk) -> Failure {
    match error {
        ClientError::Refused {
            problem,
            retry_after,
            key_source,
        } => {
            let mut problem: Problem = *problem;
            for fault in &mut problem.errors {
                if let Some((index, rest)) = fault
                    .field
                    .strip_prefix('[')
                    .and_then(|field| field.split_once(']'))
                    && let Some(line) = index
                        .parse()
                        .ok()
                        .and_then(|index: usize| chunk.lines.get(index))
                {
                    fault.field = format!("line {line}{}", rest.replacen('.', ", ", 1));
                }
            }
            let place = chunk.describe();
            let hint = if problem.status == 413 {
                "; try a smaller --chunk"
            } else {
                ""
            };
            problem.detail = format!("{place}: {}{hint}", problem.detail);
            ClientError::Refused {
                problem: Box::new(problem),
                retry_after,
                key_source,
            }
            .into()
        }
        other => other.into(),
    }
}

/// The job as it is sent.
pub(super) fn to_body(job: &NewJob) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(job).map_err(|error| Failure::Role(error.into()))
}

#[cfg(test)]
mod tests {
    use sluice_shared::api::FieldError;

    use super::*;
    use crate::client::KeySource;

    #[test]
    fn a_refusal_names_the_line_of_the_file() {
        let problem = Problem {
            r#type: "about:blank".into(),
            title: "No".into(),
            status: 422,
            detail: "no account could run it".into(),
            code: "no_such_lane".into(),
            errors: vec![FieldError {
                field: "[1].account".into(),
                detail: "there is none".into(),
            }],
            violated_policies: Vec::new(),
            resets_at: None,
        };
        let error = ClientError::Refused {
            problem: Box::new(problem),
            retry_after: None,
            key_source: KeySource::Variable,
        };
        let chunk = Chunk {
            offset: 0,
            lines: vec![7, 9, 10],
            hash: String::new(),
        };
        let Failure::Client(error) = refusal(error, &chunk) else {
            panic!("it is no longer what the API said");
        };
        assert_eq!(
            error.explain(),
            "error[no_such_lane]: lines 7 to 10: no account could run it\n  \
             line 9, account: there is none"
        );
    }
}
