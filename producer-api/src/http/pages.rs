//! Two small pages for people: what this is, and what the codes of problems mean.

use axum::{
    http::{HeaderMap, HeaderName, header},
    response::{Html, IntoResponse},
};

use super::problem::Code;

const HOME: &str = include_str!("pages/home.html");
const PROBLEMS: &str = include_str!("pages/problems.html");

/// Where the API is when the request does not say it plainly.
const USUAL_HOST: &str = "127.0.0.1:3000";

/// What these pages may load: nothing but what is in them.
const HEADERS: [(HeaderName, &str); 2] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// The page at the root: the product, its version, and the first thing to try.
pub(super) fn home(headers: &HeaderMap) -> impl IntoResponse {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .filter(|host| {
            host.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
        })
        .unwrap_or(USUAL_HOST);
    let page = HOME
        .replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{host}", host);
    (HEADERS, Html(page))
}

/// What each code means; the `type` of a problem leads here.
pub(super) async fn problems() -> impl IntoResponse {
    let mut rows = String::new();
    for code in Code::ALL {
        let (name, status) = (code.as_str(), code.status().as_u16());
        let (title, meaning) = (code.title(), code.meaning());
        rows += &format!(
            "<tr id=\"{name}\"><td><code>{name}</code></td><td>{status}</td>\
             <td><strong>{title}.</strong> {meaning}</td></tr>\n"
        );
    }
    (HEADERS, Html(PROBLEMS.replace("{rows}", &rows)))
}
