//! `Idempotency-Key`: one request, however often it is sent.

use axum::http::{HeaderMap, HeaderName};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    extract::single,
    problem::{ApiError, Code},
};
use crate::store::Idempotency;

/// The header of the request.
pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header of an answer that was given before.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Longest key.
const MOST: usize = 255;

/// The key that came with a request: a quoted string, as the draft has it, or the bare key.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = single(headers, KEY)? else {
        return Ok(None);
    };
    match read(value.as_bytes()) {
        Some(key) => Ok(Some(key)),
        None => {
            let detail = format!(
                "must be 1 to {MOST} printable ASCII characters, bare without spaces or in double quotes"
            );
            Err(ApiError::field(Code::BadHeader, KEY.as_str(), detail))
        }
    }
}

/// A structured string (RFC 9651, section 3.3.3) or a bare word.
fn read(value: &[u8]) -> Option<String> {
    let key = match value.strip_prefix(b"\"") {
        Some(quoted) => unquote(quoted.strip_suffix(b"\"")?)?,
        None if value.iter().all(u8::is_ascii_graphic) => String::from_utf8(value.to_vec()).ok()?,
        None => return None,
    };
    (1..=MOST).contains(&key.len()).then_some(key)
}

fn unquote(quoted: &[u8]) -> Option<String> {
    let mut key = String::with_capacity(quoted.len());
    let mut bytes = quoted.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => key.push(char::from(
                bytes.next().filter(|byte| b"\"\\".contains(byte))?,
            )),
            b'"' => return None,
            b' '..=b'~' => key.push(char::from(byte)),
            _ => return None,
        }
    }
    Some(key)
}

/// The key with a digest of what was asked. The digest is of the parsed request, so that white
/// space and the order of fields make no difference.
pub(super) fn of(key: String, request: &impl Serialize) -> Result<Idempotency, ApiError> {
    let request = serde_json::to_vec(request).map_err(ApiError::internal)?;
    Ok(Idempotency {
        key,
        fingerprint: hex::encode(Sha256::digest(request)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_quoted_or_bare() {
        let long = "k".repeat(MOST);
        for (value, expected) in [
            ("order-7", Some("order-7")),
            ("\"order-7\"", Some("order-7")),
            ("\"two words\"", Some("two words")),
            (r#""a\"b\\c""#, Some(r#"a"b\c"#)),
            (long.as_str(), Some(long.as_str())),
            ("", None),
            ("\"\"", None),
            ("\"", None),
            ("\"open", None),
            (r#""a\""#, None),
            (r#""a\n""#, None),
            (r#""a", "b""#, None),
            (r#""a";p=1"#, None),
            ("two words", None),
            ("a, b", None),
            ("schlüssel", None),
            ("\"tab\there\"", None),
            (&format!("{long}k"), None),
        ] {
            assert_eq!(read(value.as_bytes()).as_deref(), expected, "{value}");
        }
    }
}
