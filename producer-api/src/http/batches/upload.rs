//! An upload on its way to being a batch: read as it comes, checked and staged a chunk at a time,
//! so that its size makes no difference to the memory it takes.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use sluice_shared::{
    api::{FieldError, LineError, NewJob},
    clock,
    domain::{BatchId, JobId},
};

use super::lines::{Line, Lines};
use crate::{
    app::App,
    http::{
        Edge, accept, json,
        problem::{ApiError, Code, MOST_FIELDS, clip},
        submit::{self, Flaws, Rules},
        webhooks,
    },
    store::{self, Accepted, Idempotency, NewBatch, NewRow},
};

/// Lines and bytes of a chunk, about.
const LINES: usize = 1_000;
const BYTES: usize = 2 * 1024 * 1024;

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct Wrong {
    pub(in crate::http) code: Code,
    pub(in crate::http) detail: String,
}

/// Makes a job of a line.
pub(in crate::http) type Parse =
    Arc<dyn Fn(&[u8], &Rules<'_>) -> Result<NewRow, Wrong> + Send + Sync>;

/// What is uploaded, and how.
pub(in crate::http) struct Upload {
    pub(in crate::http) batch: NewBatch,
    /// Lines that are no jobs are left out, instead of refusing all.
    pub(in crate::http) partial: bool,
    pub(in crate::http) parse: Parse,
    /// The `Idempotency-Key`, and what else than the body makes the request what it is.
    pub(in crate::http) key: Option<(String, String)>,
}

/// The batch that an upload has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct Taken {
    pub(in crate::http) id: BatchId,
    /// It was there before.
    pub(in crate::http) replayed: bool,
}

/// Reads the body of a request, each piece of which must come within `patience`.
pub(in crate::http) fn pieces(
    body: Body,
    patience: Duration,
) -> impl Stream<Item = Result<Bytes, ApiError>> + Send + Unpin {
    Box::pin(futures::stream::unfold(body, move |mut body| async move {
        loop {
            let frame = match tokio::time::timeout(patience, body.frame()).await {
                Ok(None) => return None,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    let words = format!("the body broke off: {}", clip(&error.to_string()));
                    return Some((Err(ApiError::new(Code::BadBody, words)), body));
                }
                Err(_) => {
                    let most = humantime::format_duration(patience);
                    let detail = format!("nothing more of the body came within {most}");
                    return Some((Err(ApiError::new(Code::RequestTimeout, detail)), body));
                }
            };
            if let Ok(data) = frame.into_data() {
                return Some((Ok(data), body));
            }
        }
    }))
}

/// Takes an upload. When this returns, its batch is on disk, or nothing of it.
pub(in crate::http) async fn take(
    edge: &Edge,
    upload: Upload,
    source: impl Stream<Item = Result<Bytes, ApiError>> + Send + Unpin,
) -> Result<Taken, ApiError> {
    let _permit = edge.uploads.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            Code::Busy,
            "too many uploads at once; try again in a moment",
        )
    })?;
    let id = upload.batch.id;
    let open = edge.app.store.open_batch(&upload.batch, clock::now());
    edge.truth(open).await?;
    let client = upload.batch.client.clone();
    let taken = match stage(edge, &upload, source).await {
        Ok(digest) => accept(edge, id, &client, upload.key, digest).await,
        Err(error) => Err(error),
    };
    let is_new = taken.as_ref().is_ok_and(|taken| !taken.replayed);
    if !is_new && let Err(error) = edge.app.store.drop_stage(id).await {
        tracing::debug!(%error, "an upload will be forgotten later");
    }
    taken
}

async fn accept(
    edge: &Edge,
    id: BatchId,
    client: &str,
    key: Option<(String, String)>,
    digest: String,
) -> Result<Taken, ApiError> {
    let idempotency = key.map(|(key, about)| Idempotency {
        key,
        fingerprint: format!("batch {about} {digest}"),
    });
    let now = clock::now();
    let accepted = edge
        .app
        .store
        .accept_batch(id, client, idempotency.as_ref(), now);
    match edge.truth(accepted).await? {
        Accepted::New => {
            edge.app.batches.wake();
            Ok(Taken {
                id,
                replayed: false,
            })
        }
        Accepted::Replayed(id) => Ok(Taken { id, replayed: true }),
        Accepted::Mismatch => {
            let detail = "this Idempotency-Key came with another request before; take a new one";
            Err(ApiError::new(Code::IdempotencyKeyReused, detail))
        }
        Accepted::OverQuota(violation) => Err(ApiError::over_quota(&violation, None, now)),
        Accepted::Gone => Err(swept()),
    }
}

fn swept() -> ApiError {
    ApiError::new(
        Code::RequestTimeout,
        "the upload took too long; send it again",
    )
}

/// Checks and stages all lines. Gives a digest of the bytes.
async fn stage(
    edge: &Edge,
    upload: &Upload,
    mut source: impl Stream<Item = Result<Bytes, ApiError>> + Send + Unpin,
) -> Result<String, ApiError> {
    let limits = &edge.app.config.batches;
    let mut lines = Lines::new(edge.app.config.api.max_body_bytes);
    let mut stage = Stage {
        edge,
        upload,
        chunk: Vec::new(),
        bytes: 0,
        jobs: 0,
        wrong: Vec::new(),
    };
    let mut digest = Sha256::new();
    let mut size = 0;
    while let Some(piece) = source.next().await {
        let piece = piece?;
        size += piece.len() as u64;
        if size > limits.max_bytes {
            let detail = format!("the upload is longer than {} bytes", limits.max_bytes);
            return Err(ApiError::new(Code::BodyTooLarge, detail));
        }
        digest.update(&piece);
        lines.push(&piece);
        while let Some(line) = lines.next() {
            stage.add(line, lines.number()).await?;
        }
    }
    let last = lines.number();
    if let Some(line) = lines.finish() {
        stage.add(line, last).await?;
    }
    stage.flush(last).await?;
    if !upload.partial && !stage.wrong.is_empty() {
        return Err(refusal(stage.wrong));
    }
    if stage.jobs == 0 {
        let detail = "the upload has no line that is a job";
        let error = ApiError::new(Code::InvalidBatch, detail);
        return Err(error.with(fields(stage.wrong)));
    }
    Ok(hex::encode(digest.finalize()))
}

/// The lines at hand.
struct Stage<'a> {
    edge: &'a Edge,
    upload: &'a Upload,
    chunk: Vec<Line>,
    bytes: usize,
    /// Jobs found so far.
    jobs: u64,
    /// The first lines that are none.
    wrong: Vec<LineError>,
}

impl Stage<'_> {
    async fn add(&mut self, line: Line, last: u64) -> Result<(), ApiError> {
        if let Line::Text(_, text) = &line {
            self.bytes += text.len();
        }
        self.chunk.push(line);
        if self.chunk.len() >= LINES || self.bytes >= BYTES {
            self.flush(last).await?;
        }
        Ok(())
    }

    /// A line whose job comes after a job that there is not is wrong, too.
    async fn without_missing_parents(
        &self,
        lines: Vec<store::Line>,
        mut wrong: Vec<LineError>,
    ) -> Result<(Vec<store::Line>, Vec<LineError>), ApiError> {
        if lines.iter().all(|line| line.row.after.is_none()) {
            return Ok((lines, wrong));
        }
        let rows: Vec<NewRow> = lines.iter().map(|line| line.row.clone()).collect();
        let missing = accept::missing_parents(self.edge, &rows).await?;
        let (lines, orphans): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| {
            let after = line.row.after.as_ref();
            after.is_none_or(|after| !after.parents.iter().any(|id| missing.contains(id)))
        });
        wrong.extend(orphans.into_iter().map(|line| LineError {
            line: line.number,
            code: Code::InvalidJob.as_str().into(),
            detail: "after: names a job that there is not".into(),
        }));
        wrong.sort_unstable_by_key(|error| error.line);
        Ok((lines, wrong))
    }

    async fn flush(&mut self, last: u64) -> Result<(), ApiError> {
        self.bytes = 0;
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.is_empty() {
            return Ok(());
        }
        let (app, parse) = (self.edge.app.clone(), self.upload.parse.clone());
        let check = move || check(&app, &parse, &chunk);
        // Not here, where it would keep other requests waiting.
        let (rows, wrong) = tokio::task::spawn_blocking(check)
            .await
            .map_err(ApiError::internal)?;
        let (rows, wrong) = self.without_missing_parents(rows, wrong).await?;
        if rows.iter().any(|line| line.row.webhook.is_some()) {
            webhooks::ensure_signer(self.edge, &self.upload.batch.client).await?;
        }
        self.jobs += rows.len() as u64;
        let most = self.edge.app.config.batches.max_jobs;
        if self.jobs > most {
            let detail = format!("the upload has more than {most} jobs; nothing was accepted");
            return Err(ApiError::new(Code::TooManyJobs, detail));
        }
        let now = clock::now();
        let room = MOST_FIELDS - self.wrong.len();
        self.wrong.extend(wrong.iter().take(room).cloned());
        if !self.upload.partial && !self.wrong.is_empty() {
            // It is refused as a whole; what else is wrong with it is still looked for.
            if self.wrong.len() >= MOST_FIELDS {
                return Err(refusal(std::mem::take(&mut self.wrong)));
            }
            return Ok(());
        }
        let id = self.upload.batch.id;
        let staged = self.edge.app.store.stage(id, &rows, &wrong, last, now);
        if !self.edge.truth(staged).await? {
            return Err(swept());
        }
        Ok(())
    }
}

fn check(app: &App, parse: &Parse, chunk: &[Line]) -> (Vec<store::Line>, Vec<LineError>) {
    let accounts = app.roster.accounts();
    let rules = Rules::of(app, &accounts, clock::now());
    let (mut rows, mut wrong) = (Vec::with_capacity(chunk.len()), Vec::new());
    for line in chunk {
        let (number, parsed) = match line {
            Line::Text(number, text) => (*number, parse(text, &rules)),
            Line::TooLong(number) => {
                let most = app.config.api.max_body_bytes;
                let too_long = Wrong {
                    code: Code::BodyTooLarge,
                    detail: format!("is longer than {most} bytes"),
                };
                (*number, Err(too_long))
            }
        };
        match parsed {
            Ok(row) => rows.push(store::Line { number, row }),
            Err(Wrong { code, detail }) => wrong.push(LineError {
                line: number,
                code: code.as_str().into(),
                detail,
            }),
        }
    }
    (rows, wrong)
}

/// The job that a line of Sluice's own API asks for.
pub(in crate::http) fn job(line: &[u8], rules: &Rules<'_>) -> Result<NewRow, Wrong> {
    let job: NewJob = json::parse(line, PhantomData, Code::InvalidJob).map_err(Wrong::from)?;
    submit::row(job, JobId::generate(), rules).map_err(Wrong::from)
}

impl From<ApiError> for Wrong {
    fn from(error: ApiError) -> Self {
        let words = error.detail().replace("the body is no JSON", "is no JSON");
        Self {
            code: error.code(),
            // The line has its number already.
            detail: words.replace(" at line 1 column", " at column"),
        }
    }
}

impl From<Flaws> for Wrong {
    fn from(flaws: Flaws) -> Self {
        ApiError::from(flaws).into()
    }
}

fn refusal(wrong: Vec<LineError>) -> ApiError {
    let first = wrong.first();
    let whole = first.map_or(String::new(), |first| {
        let others = match wrong.len() {
            1 => String::new(),
            MOST_FIELDS => " (and many more lines)".into(),
            many => format!(" (and {} more lines)", many - 1),
        };
        format!(
            "line {}: {}{others}; nothing was accepted",
            first.line, first.detail
        )
    });
    ApiError::new(Code::InvalidBatch, whole).with(fields(wrong))
}

fn fields(wrong: Vec<LineError>) -> Vec<FieldError> {
    let field = |error: LineError| FieldError {
        field: format!("line {}", error.line),
        detail: error.detail,
    };
    wrong.into_iter().map(field).collect()
}
