//! The dashboard: the files of `web/dist`, which are in the binary if they were there when it was
//! built.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use rust_embed::RustEmbed;

use super::{pages, problem};

#[derive(RustEmbed)]
#[folder = "../web/dist"]
#[allow_missing = true]
struct Files;

const INDEX: &str = "index.html";

/// What stands in the page for the nonce of this answer.
const NONCE: &str = "__CSP_NONCE__";

/// The first parts of paths that are never the dashboard's.
const NOT_OURS: [&str; 4] = ["api", "docs", "health", "metrics"];

/// Whether the dashboard is in this binary.
#[must_use]
pub fn has_dashboard() -> bool {
    Files::get(INDEX).is_some()
}

/// The page at the root: the dashboard, or what this is when there is none.
pub(super) async fn home(headers: HeaderMap) -> Response {
    match index() {
        Some(page) => page,
        None => pages::home(&headers).into_response(),
    }
}

/// A file of the dashboard, its page for every other path of its own, and else nothing.
pub(super) async fn file_or_page(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if NOT_OURS.contains(&first) || !(method == Method::GET || method == Method::HEAD) {
        return problem::no_such_route(&uri).into_response();
    }
    if let Some(answer) = file(path, &headers) {
        return answer;
    }
    // What has an ending is a file that is gone, and a program does not ask for a page.
    let is_page = !path.contains('.') && wants_a_page(&headers);
    match index().filter(|_| is_page) {
        Some(page) => page,
        None => problem::no_such_route(&uri).into_response(),
    }
}

/// Whether this is a browser on its way to a page, by what it accepts.
fn wants_a_page(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|accept| accept.to_str().ok())
        .any(|accept| accept.contains("text/html"))
}

fn index() -> Option<Response> {
    let file = Files::get(INDEX)?;
    let nonce = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
    let page = String::from_utf8_lossy(&file.data).replace(NONCE, &nonce);
    let mut answer = axum::response::Html(page).into_response();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; \
         img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = answer.headers_mut();
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(answer)
}

/// A file, compressed as the client can take it. What is in `assets` has its hash in its name.
fn file(path: &str, headers: &HeaderMap) -> Option<Response> {
    if path == INDEX || path.ends_with(".br") || path.ends_with(".gz") {
        return None;
    }
    let plain = Files::get(path)?;
    let kind = plain.metadata.mimetype().to_owned();
    let (encoding, data) = compressed(path, headers).unwrap_or((None, plain.data));
    let caching = if path.starts_with("assets/") {
        "public, max-age=31536000, immutable"
    } else {
        "public, max-age=3600"
    };
    let mut answer = (StatusCode::OK, Body::from(data.into_owned())).into_response();
    let fields = answer.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::try_from(kind).ok()?);
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    fields.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(encoding) = encoding {
        fields.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    Some(answer)
}

type Encoded = (Option<&'static str>, std::borrow::Cow<'static, [u8]>);

fn compressed(path: &str, headers: &HeaderMap) -> Option<Encoded> {
    let accepted = headers.get(header::ACCEPT_ENCODING)?.to_str().ok()?;
    let takes = |encoding: &str| {
        accepted.split(',').any(|part| {
            let mut part = part.split(';').map(str::trim);
            part.next() == Some(encoding) && !part.any(|rule| rule == "q=0")
        })
    };
    [("br", "br"), ("gzip", "gz")]
        .into_iter()
        .filter(|(encoding, _)| takes(encoding))
        .find_map(|(encoding, ending)| {
            let file = Files::get(&format!("{path}.{ending}"))?;
            Some((Some(encoding), file.data))
        })
}
