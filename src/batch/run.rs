//! A batch from its first line to its last result.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sluice_shared::{clock, domain::JobId};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    collect::collect,
    input::Lines,
    journal::{Finished, Journal},
    plan::{Chunk, Limits, Planner, check},
    progress::Progress,
    results::{Part, with_suffix},
    submit::{self, to_body},
};
use crate::{Exit, Failure, client::Client, commands::JobOptions, output, signals};

/// Bad lines that are shown; the rest are counted.
const SHOWN: usize = 20;
/// Bytes of one request, well below what a server takes by default.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

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
    let submitting = submit::all(
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

pub(super) fn show(path: &Path) -> String {
    path.display().to_string()
}
