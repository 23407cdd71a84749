//! `/v1/files`: what batches are made of, and what comes of them.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, RawQuery, Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt, stream};
use multer::Multipart;
use serde_json::{Value, json};
use sluice_shared::{api::Scope, clock, domain::BatchId};
use uuid::Uuid;

use super::{Refusal, output, page, seconds};
use crate::{
    http::{
        Edge, batches,
        batches::upload,
        extract::{Caller, single},
        problem::{ApiError, Code, clip},
    },
    store::{BatchRow, FileRow},
};

/// Bytes of a piece.
const PIECE: usize = 256 * 1024;

/// What the ids begin with: of what was uploaded, and of a batch's results and errors.
const UPLOADED: &str = "file-";
const OUTPUT: &str = "file-output-";
const ERRORS: &str = "file-errors-";

/// What a file's id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// It was uploaded.
    Uploaded(Uuid),
    /// The answers of a batch.
    Output(BatchId),
    /// The lines of a batch that have no answer.
    Errors(BatchId),
}

impl Which {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let id = |text: &str| Uuid::try_parse(text).ok();
        let which = if let Some(rest) = text.strip_prefix(OUTPUT) {
            id(rest).map(|id| Self::Output(BatchId(id)))
        } else if let Some(rest) = text.strip_prefix(ERRORS) {
            id(rest).map(|id| Self::Errors(BatchId(id)))
        } else {
            let rest = text.strip_prefix(UPLOADED);
            rest.and_then(id).map(Self::Uploaded)
        };
        which.ok_or_else(|| no_such_file(text))
    }

    pub(super) fn id(self) -> String {
        match self {
            Self::Uploaded(id) => format!("{UPLOADED}{}", id.simple()),
            Self::Output(BatchId(id)) => format!("{OUTPUT}{}", id.simple()),
            Self::Errors(BatchId(id)) => format!("{ERRORS}{}", id.simple()),
        }
    }
}

fn no_such_file(id: &str) -> ApiError {
    ApiError::new(Code::NoSuchFile, format!("there is no file {}", clip(id)))
}

/// Uploads a file.
pub(super) async fn create(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    caller.needs(Scope::Submit)?;
    let (parts, body) = request.into_parts();
    let kind = single(&parts.headers, header::CONTENT_TYPE)?;
    let boundary = kind
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| multer::parse_boundary(kind).ok())
        .ok_or_else(|| ApiError::new(Code::UnsupportedMediaType, "send `multipart/form-data`"))?;
    let _permit = edge.uploads.clone().try_acquire_owned().map_err(|_| {
        ApiError::new(
            Code::Busy,
            "too many uploads at once; try again in a moment",
        )
    })?;
    let pieces = upload::pieces(body, edge.app.config.api.request_timeout.0);
    let pieces =
        pieces.map(|piece| piece.map_err(|error| std::io::Error::other(error.detail().to_owned())));
    let now = clock::now();
    let mut file = FileRow {
        id: Uuid::now_v7(),
        client: caller.0.name.as_ref().to_owned(),
        name: String::new(),
        purpose: String::new(),
        size: 0,
        created_at: now,
    };
    let open = edge.app.store.open_file(file.id, &file.client, now);
    edge.truth(open).await?;
    let taken = take(&edge, Multipart::new(pieces, boundary), &mut file).await;
    if let Err(error) = taken {
        if let Err(error) = edge.app.store.remove_file(file.id).await {
            tracing::debug!(%error, "an upload will be forgotten later");
        }
        return Err(error.into());
    }
    Ok(Json(view(&file)))
}

async fn take(edge: &Edge, mut form: Multipart<'_>, file: &mut FileRow) -> Result<(), ApiError> {
    let broken = |error: multer::Error| {
        ApiError::new(Code::BadBody, format!("the form cannot be read: {error}"))
    };
    let most = edge.app.config.batches.max_bytes;
    let mut found = false;
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        match field.name() {
            Some("purpose") => {
                while let Some(piece) = field.chunk().await.map_err(broken)? {
                    file.purpose.push_str(&String::from_utf8_lossy(&piece));
                    if file.purpose.len() > 64 {
                        break;
                    }
                }
            }
            Some("file") if !found => {
                found = true;
                file.name = clip(field.file_name().unwrap_or("upload")).replace('\0', "");
                let mut number = 0;
                let mut whole = Vec::new();
                loop {
                    let piece = field.chunk().await.map_err(broken)?;
                    let is_last = piece.is_none();
                    whole.extend_from_slice(&piece.unwrap_or_default());
                    if whole.len() >= PIECE || (is_last && !whole.is_empty()) {
                        file.size += whole.len() as u64;
                        if file.size > most {
                            let detail = format!("the file is longer than {most} bytes");
                            return Err(ApiError::new(Code::BodyTooLarge, detail));
                        }
                        let data = std::mem::take(&mut whole);
                        let added = edge.app.store.add_piece(file.id, number, data);
                        edge.truth(added).await?;
                        number += 1;
                    }
                    if is_last {
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    if !found {
        return Err(ApiError::field(Code::InvalidJob, "file", "is missing"));
    }
    if file.purpose != "batch" {
        let detail = format!("is `{}`; there is only `batch`", clip(&file.purpose));
        return Err(ApiError::field(Code::InvalidJob, "purpose", detail));
    }
    let accepted = edge.app.store.accept_file(file, clock::now());
    if edge.truth(accepted).await? {
        Ok(())
    } else {
        Err(ApiError::new(
            Code::RequestTimeout,
            "the upload took too long",
        ))
    }
}

/// Lists a client's uploaded files, newest first.
pub(super) async fn list(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    let asked = page(query.as_deref(), &["purpose", "order"])?;
    let after = match &asked.after {
        None => None,
        Some(after) => match Which::parse(after)? {
            Which::Uploaded(id) => Some(id),
            _ => return Err(no_such_file(after).into()),
        },
    };
    let files = edge.app.store.files(&caller.0.name, after, asked.limit + 1);
    let mut files = edge.truth(files).await?;
    let more = files.len() > asked.limit as usize;
    files.truncate(asked.limit as usize);
    let data: Vec<Value> = files.iter().map(view).collect();
    Ok(Json(super::list_of(data, more)))
}

/// Tells of a file.
pub(super) async fn retrieve(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    let which = Which::parse(&id)?;
    Ok(Json(match which {
        Which::Uploaded(file) => view(&find(&edge, &caller, file).await?),
        Which::Output(batch) | Which::Errors(batch) => {
            let batch = of_batch(&edge, &caller, batch, which).await?;
            json!({
                "id": which.id(),
                "object": "file",
                // It is made when it is read.
                "bytes": 0,
                "created_at": seconds(batch.ended_at.unwrap_or(batch.created_at)),
                "filename": format!("{}.jsonl", which.id()),
                "purpose": "batch_output",
                "status": "processed",
            })
        }
    }))
}

/// The content of a file, as it is read.
pub(super) async fn content(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let caller = caller?;
    let which = Which::parse(&id)?;
    let body = match which {
        Which::Uploaded(file) => {
            let file = find(&edge, &caller, file).await?;
            let pieces = pieces(edge, file.id).map(|piece| {
                piece.map_err(|error| std::io::Error::other(error.detail().to_owned()))
            });
            Body::from_stream(pieces)
        }
        Which::Output(batch) | Which::Errors(batch) => {
            let batch = of_batch(&edge, &caller, batch, which).await?;
            let write = output::line(matches!(which, Which::Output(_)));
            batches::results::stream(edge, batch, 0, None, write)
        }
    };
    let mut answer = body.into_response();
    let kind = HeaderValue::from_static("application/jsonl");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(answer)
}

/// Deletes a file. A batch that was made of it goes on.
pub(super) async fn delete(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    caller.needs(Scope::Submit)?;
    let Which::Uploaded(file) = Which::parse(&id)? else {
        let detail = "the results of a batch are part of it and cannot be deleted alone";
        return Err(ApiError::new(Code::NotEnded, detail).into());
    };
    let file = find(&edge, &caller, file).await?;
    edge.truth(edge.app.store.remove_file(file.id)).await?;
    Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
}

/// A file that this caller uploaded; what is others' is not there for it.
pub(super) async fn find(edge: &Edge, caller: &Caller, id: Uuid) -> Result<FileRow, ApiError> {
    let file = edge.truth(edge.app.store.file(id)).await?;
    let own = file.filter(|file| *file.client == *caller.0.name || caller.0.may(Scope::Operate));
    own.ok_or_else(|| no_such_file(&Which::Uploaded(id).id()))
}

async fn of_batch(
    edge: &Edge,
    caller: &Caller,
    id: BatchId,
    which: Which,
) -> Result<BatchRow, ApiError> {
    let batch = super::find(edge, caller, id).await;
    let batch = batch.ok().filter(|batch| batch.ended_at.is_some());
    batch.ok_or_else(|| no_such_file(&which.id()))
}

/// The pieces of an uploaded file.
pub(super) fn pieces(
    edge: Arc<Edge>,
    id: Uuid,
) -> impl Stream<Item = Result<bytes::Bytes, ApiError>> + Send + Unpin {
    Box::pin(stream::try_unfold(0_u32, move |number| {
        let edge = edge.clone();
        async move {
            let piece = edge.truth(edge.app.store.piece(id, number)).await?;
            Ok(piece.map(|piece| (piece.into(), number + 1)))
        }
    }))
}

fn view(file: &FileRow) -> Value {
    json!({
        "id": Which::Uploaded(file.id).id(),
        "object": "file",
        "bytes": file.size,
        "created_at": seconds(file.created_at),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    })
}
