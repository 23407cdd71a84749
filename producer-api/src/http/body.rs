//! Reading a request's body: as JSON only, up to a size, within a time, and all bodies that are
//! being read or looked into together within a bound.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    extract::single,
    problem::{ApiError, Code, clip},
};

/// A body up to this size is not counted against the bound.
const SMALL: usize = 64 * 1024;

/// Bytes of larger bodies that may be in memory at once, unless one body alone may be larger.
const MOST: usize = 128 * 1024 * 1024;

/// What one permit of the bound stands for.
const UNIT: usize = 1024;

/// Reads bodies; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    limit: usize,
    patience: std::time::Duration,
    room: Arc<Semaphore>,
}

/// A body that was read. It counts against the bound until its room is dropped.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) bytes: Bytes,
    /// Its part of the bound.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// Bodies of at most `limit` bytes, each read within `patience`.
    pub(super) fn new(limit: usize, patience: std::time::Duration) -> Self {
        let room = Arc::new(Semaphore::new(limit.max(MOST).div_ceil(UNIT)));
        Self {
            limit,
            patience,
            room,
        }
    }

    /// Reads a body of JSON.
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Payload, ApiError> {
        json_is_declared(headers)?;
        if body.size_hint().lower() > self.limit as u64 {
            return Err(self.too_large());
        }
        match tokio::time::timeout(self.patience, self.gather(body)).await {
            Ok(payload) => payload,
            Err(_) => {
                let most = humantime::format_duration(self.patience);
                let detail = format!("the body did not come whole within {most}");
                Err(ApiError::new(Code::RequestTimeout, detail))
            }
        }
    }

    async fn gather(&self, mut body: Body) -> Result<Payload, ApiError> {
        let mut room: Option<OwnedSemaphorePermit> = None;
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let words = format!("the body broke off: {}", clip(&error.to_string()));
                ApiError::new(Code::BadBody, words)
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let size = first.len() + whole.len() + data.len();
            if size > self.limit {
                return Err(self.too_large());
            }
            if size > SMALL {
                self.make_room(&mut room, size)?;
            }
            // Nearly every body comes in one piece, which is not copied.
            if first.is_empty() && whole.is_empty() {
                first = data;
            } else {
                if whole.is_empty() {
                    whole.extend_from_slice(&std::mem::take(&mut first));
                }
                whole.extend_from_slice(&data);
            }
        }
        let bytes = if whole.is_empty() {
            first
        } else {
            whole.freeze()
        };
        Ok(Payload { bytes, room })
    }

    fn make_room(
        &self,
        room: &mut Option<OwnedSemaphorePermit>,
        size: usize,
    ) -> Result<(), ApiError> {
        let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = u32::try_from(size.div_ceil(UNIT).saturating_sub(held)).unwrap_or(u32::MAX);
        if missing == 0 {
            return Ok(());
        }
        let more = self
            .room
            .clone()
            .try_acquire_many_owned(missing)
            .map_err(|_| {
                ApiError::new(
                    Code::Busy,
                    "too many large requests at once; try again, or send less",
                )
            })?;
        match room {
            Some(room) => room.merge(more),
            None => *room = Some(more),
        }
        Ok(())
    }

    fn too_large(&self) -> ApiError {
        let detail = format!(
            "the body is longer than {} bytes; send less at once",
            self.limit
        );
        ApiError::new(Code::BodyTooLarge, detail)
    }
}

/// Refuses a body that does not say that it is JSON, or that is compressed.
fn json_is_declared(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = single(headers, header::CONTENT_TYPE)?;
    if !kind.is_some_and(is_json) {
        let kind = kind.map_or("nothing".into(), |kind| {
            clip(&String::from_utf8_lossy(kind.as_bytes()))
        });
        let detail = format!(
            "the Content-Type is `{kind}`; send `application/json` (curl: -H 'Content-Type: application/json')"
        );
        return Err(ApiError::new(Code::UnsupportedMediaType, detail));
    }
    match single(headers, header::CONTENT_ENCODING)? {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(
            ApiError::new(Code::UnsupportedMediaType, "send the body uncompressed"),
        ),
        _ => Ok(()),
    }
}

/// `application/json` or `…/…+json`, with any parameters.
fn is_json(kind: &HeaderValue) -> bool {
    let kind = kind.as_bytes();
    let end = kind
        .iter()
        .position(|byte| *byte == b';')
        .unwrap_or(kind.len());
    let essence = kind[..end].trim_ascii().to_ascii_lowercase();
    essence == b"application/json" || (essence.ends_with(b"+json") && essence.contains(&b'/'))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use futures::{StreamExt, stream};

    use super::*;

    fn headers() -> HeaderMap {
        let kind = HeaderValue::from_static("application/json");
        HeaderMap::from_iter([(header::CONTENT_TYPE, kind)])
    }

    fn pieces(count: usize, size: usize) -> Body {
        let piece = Bytes::from(vec![b' '; size]);
        Body::from_stream(stream::repeat(Ok::<_, Infallible>(piece)).take(count))
    }

    #[test]
    fn json_goes_by_several_names() {
        for (kind, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.sluice+json", true),
            ("+json", false),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("application/jsonp", false),
        ] {
            assert_eq!(is_json(&HeaderValue::from_static(kind)), expected, "{kind}");
        }
    }

    #[tokio::test]
    async fn pieces_become_one() {
        let bodies = Bodies::new(1 << 20, Duration::from_secs(5));
        for (count, size) in [(0, 1), (1, 10), (3, 10), (40, 10_000)] {
            let payload = bodies.read(&headers(), pieces(count, size)).await.unwrap();
            assert_eq!(payload.bytes.len(), count * size);
        }
    }

    #[tokio::test]
    async fn all_large_bodies_together_are_bounded() {
        let bodies = Bodies::new(MOST, Duration::from_secs(5));
        let large = || pieces(MOST / (1 << 20) / 2, 1 << 20);
        let first = bodies.read(&headers(), large()).await.unwrap();
        let second = bodies.read(&headers(), large()).await.unwrap();
        let refused = bodies
            .read(&headers(), pieces(1, SMALL + 1))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::Busy);
        assert!(bodies.read(&headers(), pieces(1, SMALL)).await.is_ok());
        drop((first, second));
        assert!(bodies.read(&headers(), pieces(1, SMALL + 1)).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let bodies = Bodies::new(1 << 20, Duration::from_millis(100));
        let drip = stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<_, Infallible>(Bytes::from_static(b" "))
        });
        let refused = bodies
            .read(&headers(), Body::from_stream(drip))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::RequestTimeout);
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_cut_short() {
        let bodies = Bodies::new(1000, Duration::from_secs(5));
        let endless = pieces(usize::MAX, 100);
        let refused = bodies.read(&headers(), endless).await.unwrap_err();
        assert_eq!(refused.code(), Code::BodyTooLarge);
    }
}
