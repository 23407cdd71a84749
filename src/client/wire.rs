//! Small translations between what a person or a server writes and what we mean.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use sluice_shared::clock;
use url::{Host, Url};

use super::ClientError;

/// An `Idempotency-Key` as the header wants it: a quoted string.
pub(super) fn quoted(key: &str) -> Result<String, ClientError> {
    let fits = !key.is_empty()
        && key.len() <= 255
        && key
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if !fits {
        return Err(ClientError::BadIdempotencyKey);
    }
    Ok(format!(
        "\"{}\"",
        key.replace('\\', "\\\\").replace('"', "\\\"")
    ))
}

pub(super) fn parse_url(text: &str) -> Result<Url, ClientError> {
    let text = text.trim();
    let bad = |problem: &str| ClientError::BadUrl {
        url: text.into(),
        problem: problem.into(),
    };
    let url: Url = text
        .parse()
        .map_err(|error: url::ParseError| bad(&error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ClientError::BadUrl {
            url: url.host_str().unwrap_or_default().into(),
            problem: "it holds a user or password; the key goes into SLUICE_API_KEY".into(),
        });
    }
    match url.scheme() {
        "http" | "https" if url.host().is_some() => Ok(url),
        _ => Err(bad("it must begin with http:// or https://")),
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// `Retry-After` in either of its forms.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(value)
        .ok()?
        .timestamp()
        .as_millisecond();
    let now = clock::now().as_millis();
    Some(Duration::from_millis(u64::try_from(at - now).unwrap_or(0)))
}

pub(super) fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it took too long".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

pub(super) fn excerpt(bytes: &[u8]) -> String {
    crate::output::one_line(&String::from_utf8_lossy(bytes), 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idempotency_key_is_quoted() {
        assert_eq!(quoted("order-7").unwrap(), "\"order-7\"");
        assert_eq!(quoted(r#"a"b\c"#).unwrap(), r#""a\"b\\c""#);
        assert!(quoted("").is_err());
        assert!(quoted("line\nbreak").is_err());
        assert!(quoted("schlüssel").is_err());
    }

    #[test]
    fn a_url_must_be_one_of_http() {
        assert!(parse_url("http://127.0.0.1:3000").is_ok());
        assert!(parse_url("https://queue.example.com/sluice/").is_ok());
        for bad in [
            "",
            "127.0.0.1:3000",
            "localhost:3000",
            "ftp://host",
            "http://",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let error = parse_url("http://me:hunter2@host").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn only_this_machine_goes_past_the_proxy() {
        for (url, expected) in [
            ("http://127.0.0.1:3000", true),
            ("http://[::1]:3000", true),
            ("http://localhost", true),
            ("http://10.0.0.7", false),
            ("https://localhost.example.com", false),
        ] {
            assert_eq!(is_loopback(&parse_url(url).unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers), None);
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert(
            RETRY_AFTER,
            "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap(),
        );
        assert_eq!(retry_after(&headers), Some(Duration::ZERO));
        headers.insert(RETRY_AFTER, "soon".parse().unwrap());
        assert_eq!(retry_after(&headers), None);
    }
}
