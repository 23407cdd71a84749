//! A batch from its first line to its last result.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use serde::Serialize;
use sluice_shared::{api::Problem, clock, domain::JobId};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    input::Lines,
    journal::{Finished, Journal},
    plan::{Chunk, Content, Limits, Planner, check, idempotency_key},
    progress::Progress,
    results::{Part, ResultLine, with_suffix},
};
use crate::{
    Exit, Failure,
    client::{Client, ClientError},
    commands::JobOptions,
    output, signals,
};

/// Bad lines that are shown; the rest are counted.
const SHOWN: usize = 20;
/// Bytes of one request, well below what a server takes by default.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Tries of a chunk that the server says it cannot take for a reason of its own.
const SERVER_FAULTS: u32 = 10;
/// How long a poll waits when no other job is waiting for its turn.
const PATIENT: Duration = Duration::from_secs(30);
/// How long it waits when others are.
const BRIEF: Duration = Duration::from_secs(1);

/// What to run and how.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    /// The prompts.
    pub(crate) file: &'a Path,
    /// The results; beside the file by default.
    pub(crate) output: Option<&'a Path>,
    /// A new batch, even if there was one.
    pub(crate) again: bool,
    /// Submit only.
    pub(crate) no_wait: bool,
    /// A summary in JSON.
    pub(crate) json: bool,
    /// Jobs in one request.
    pub(crate) chunk: usize,
    /// Jobs that are waited for at once.
    pub(crate) concurrency: usize,
    /// What a line leaves open.
    pub(crate) defaults: &'a JobOptions,
}

/// How it went.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    batch: Uuid,
    file: &'a Path,
    results: Option<&'a Path>,
    jobs: u64,
    succeeded: u64,
    failed: u64,
}

/// Runs the file to the end, going on where an earlier run stopped.
pub(crate) async fn run(client: &Client, options: &Options<'_>) -> Result<Exit, Failure> {
    let stem = stem(options.file);
    let results = options
        .output
        .map_or_else(|| with_suffix(&stem, ".results.jsonl"), Path::to_owned);
    let mut lines = Lines::open(options.file).map_err(Failure::io(show(options.file)))?;
    let mut journal = Journal::open(
        &with_suffix(&stem, ".sluice-state.jsonl"),
        client.url().as_str(),
        options.again,
        clock::now(),
    )?;
    let chunks = match scan(&mut lines, options, &journal) {
        Ok(chunks) => chunks,
        Err(failure) => {
            journal.abandon();
            return Err(failure);
        }
    };
    let jobs = chunks.iter().map(|chunk| chunk.lines.len() as u64).sum();
    let has_more = chunks.len() > journal.standing().sent.len();
    if let Some(end) = journal.standing().finished
        && !has_more
        && results.is_file()
    {
        output::note(&format!(
            "{} was done at {}; run it anew with --again",
            show(options.file),
            end.at
        ));
        return summarize(&journal, options, Some(&results), jobs, end.succeeded);
    }
    if let Err(failure) = reach(client, &journal).await {
        journal.abandon();
        return Err(failure);
    }

    let known = known_ids(&chunks, &journal);
    let part_path = with_suffix(&results, ".part");
    let part_io = || Failure::io(show(&part_path));
    if !known.is_empty() && !part_path.exists() && results.is_file() {
        // Lines were added to a batch that was done: its results need not be asked for again.
        std::fs::copy(&results, &part_path).map_err(part_io())?;
    }
    let mut part = Part::open(&part_path, |line| known.get(&line).copied()).map_err(part_io())?;
    if !journal.is_new {
        output::note(&format!(
            "going on with the batch of {}: {} of {jobs} submitted, {} done",
            journal.standing().begun_at,
            known.len(),
            part.len()
        ));
    }
    let failed = part.len() - part.succeeded();
    let progress = RefCell::new(Progress::begin(
        jobs,
        known.len() as u64,
        part.len(),
        failed,
    ));
    let (found, submitted) = mpsc::unbounded_channel();
    for (line, id) in known.into_iter().filter(|(line, _)| !part.has(*line)) {
        // The receiver is right here.
        let _ = found.send((line, id));
    }
    let submitting = submit(
        client,
        options,
        &mut lines,
        &chunks,
        &mut journal,
        found,
        &progress,
    );
    let collecting = async {
        if options.no_wait {
            // Lets go of the channel: nobody is to be waited for.
            drop(submitted);
            return Ok(());
        }
        collect(client, submitted, options.concurrency, &mut part, &progress).await
    };
    let ended = tokio::select! {
        done = async { tokio::try_join!(submitting, collecting) } => done.map(|_| true),
        stopped = signals::stop() => stopped.map(|()| false),
    };
    let progress = progress.into_inner();
    progress.end();
    match ended {
        Err(failure) => {
            part.discard();
            let submitted = known_ids(&chunks, &journal).len();
            if submitted > 0 {
                output::note(&format!(
                    "{submitted} of {jobs} jobs are submitted, {} done; run the same command to go \
                     on",
                    progress.done()
                ));
            }
            return Err(failure);
        }
        Ok(false) => {
            output::note(&format!(
                "stopped with {} of {jobs} done; run the same command to go on. What is submitted \
                 runs on",
                progress.done()
            ));
            return Ok(Exit::Interrupted);
        }
        Ok(true) => {}
    }
    if options.no_wait {
        part.discard();
        output::note("submitted; the same command without --no-wait collects the results");
        return summarize(&journal, options, None, jobs, jobs);
    }
    let succeeded = part.succeeded();
    part.finish(&results).map_err(Failure::io(show(&results)))?;
    journal.finished(Finished {
        at: clock::now(),
        succeeded,
        failed: jobs - succeeded,
    })?;
    summarize(&journal, options, Some(&results), jobs, succeeded)
}

/// Reads every line once: refuses bad ones before anything is submitted, and plans the chunks.
fn scan(
    lines: &mut Lines<BufReader<File>>,
    options: &Options<'_>,
    journal: &Journal,
) -> Result<Vec<Chunk>, Failure> {
    let standing = journal.standing();
    let limits = Limits {
        jobs: options.chunk,
        bytes: CHUNK_BYTES,
    };
    let mut planner = Planner::new(limits, &standing.sent);
    let (mut bad, mut shown) = (0, String::new());
    let io = || Failure::io(show(options.file));
    while let Some(line) = lines.next().map_err(io())? {
        match line.job {
            Ok(mut job) => {
                options.defaults.fill(&mut job);
                planner.add(line.number, line.offset, &to_body(&job)?);
            }
            Err(problem) => {
                bad += 1;
                if bad <= SHOWN {
                    shown += &format!("\n  line {}: {problem}", line.number);
                }
            }
        }
    }
    if bad > 0 {
        let more = if bad > SHOWN {
            format!("\n  and {} more", bad - SHOWN)
        } else {
            String::new()
        };
        let lines = if bad == 1 { "line" } else { "lines" };
        return Err(Failure::usage(format!(
            "{}: {bad} bad {lines}; nothing was submitted{shown}{more}",
            show(options.file)
        )));
    }
    let chunks = planner.finish();
    if chunks.is_empty() {
        return Err(Failure::usage(format!(
            "{} holds no jobs",
            show(options.file)
        )));
    }
    check(&chunks, &standing.sent).map_err(|(number, now)| {
        let where_now = now.unwrap_or_else(|| format!("the lines of chunk {number}"));
        Failure::usage(format!(
            "{where_now} of {}, or the options, are not as they were when they were submitted on {}; \
             put them back to go on, or begin anew with --again",
            show(options.file),
            standing.begun_at
        ))
    })?;
    if let Some(number) = standing.doubtful(clock::now()) {
        return Err(Failure::usage(format!(
            "whether {} arrived at {} is unknown, and the server no longer remembers; look with \
             `sluice list`, then begin anew with --again",
            chunks[number].describe(),
            standing.sent_at
        )));
    }
    Ok(chunks)
}

/// Whether the server is there, and is the one that knows this batch. Later on a server may go
/// away and come back; to begin with, it must be there.
async fn reach(client: &Client, journal: &Journal) -> Result<(), Failure> {
    let standing = journal.standing();
    let first = standing
        .sent
        .iter()
        .filter_map(|chunk| chunk.ids.as_ref()?.first())
        .next();
    let answer = match first {
        Some(id) => client.job(*id, None).await.map(drop),
        None => client.health().await.map(drop),
    };
    match answer {
        Err(error)
            if error.is_not_found() && first.is_some() && !is_same(client, &standing.url) =>
        {
            Err(Failure::usage(format!(
                "this batch was begun at {}, and {} does not know its jobs; set SLUICE_URL back, \
                 or begin anew with --again",
                standing.url,
                client.url()
            )))
        }
        // A pruned job is told with the results; what is down for a while is waited for.
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) if error.is_transient() && !error.is_refused_connection() => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

fn is_same(client: &Client, url: &str) -> bool {
    client.url().as_str() == url
}

fn known_ids(chunks: &[Chunk], journal: &Journal) -> BTreeMap<u64, JobId> {
    let sent = &journal.standing().sent;
    let pairs = chunks.iter().zip(sent).filter_map(|(chunk, sent)| {
        let ids = sent.ids.as_ref()?;
        Some(chunk.lines.iter().copied().zip(ids.iter().copied()))
    });
    pairs.flatten().collect()
}

/// Submits what is not submitted yet, one chunk after the other.
async fn submit(
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

/// What one look at a job found.
enum Look {
    Ended(Box<ResultLine>),
    NotYet(u64, JobId),
}

/// Waits for all jobs that come, so many at a time, and keeps their results. A job that takes
/// long goes back to the end of the line, so that it does not hide others that have ended.
async fn collect(
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

fn summarize(
    journal: &Journal,
    options: &Options<'_>,
    results: Option<&Path>,
    jobs: u64,
    succeeded: u64,
) -> Result<Exit, Failure> {
    let batch = journal.standing().batch;
    let failed = jobs - succeeded;
    if options.json {
        output::json(&Summary {
            batch,
            file: options.file,
            results,
            jobs,
            succeeded,
            failed,
        })?;
    } else if let Some(results) = results {
        output::line(&format!(
            "{succeeded} of {jobs} succeeded; results in {}",
            show(results)
        ))?;
    } else {
        output::line(&format!("{jobs} submitted"))?;
    }
    Ok(Exit::when(failed == 0))
}

/// The path without the `.jsonl` that its neighbours are named after.
fn stem(file: &Path) -> PathBuf {
    let is_jsonl = file
        .extension()
        .is_some_and(|extension| extension == "jsonl");
    if is_jsonl {
        file.with_extension("")
    } else {
        file.to_owned()
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn to_body(job: &sluice_shared::api::NewJob) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(job).map_err(|error| Failure::Role(error.into()))
}
