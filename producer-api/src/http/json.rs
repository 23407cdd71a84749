//! JSON from a client: parsed once, and explained when it is wrong.

use std::{fmt, marker::PhantomData};

use serde::de::{self, DeserializeSeed, IgnoredAny, SeqAccess, Visitor};
use serde_path_to_error::Track;
use sluice_shared::api::FieldError;

use super::problem::{ApiError, Code, clip};

/// Parses a body. What is not JSON is `malformed_json`; what is JSON and not what it should be
/// is `invalid`, with the field named.
pub(super) fn parse<'a, S>(bytes: &'a [u8], seed: S, invalid: Code) -> Result<S::Value, ApiError>
where
    S: DeserializeSeed<'a> + Copy,
{
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = seed
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value));
    parsed.map_err(|error| explain(bytes, seed, &error, invalid))
}

/// The first pass keeps no track of where it is, which is what makes it fast; this one does.
fn explain<'a, S>(bytes: &'a [u8], seed: S, error: &serde_json::Error, invalid: Code) -> ApiError
where
    S: DeserializeSeed<'a>,
{
    if bytes.trim_ascii().is_empty() {
        return ApiError::new(
            Code::MalformedJson,
            "the body is empty; send a JSON document",
        );
    }
    if !error.is_data() {
        return ApiError::new(Code::MalformedJson, format!("the body is no JSON: {error}"));
    }
    let mut track = Track::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    drop(seed.deserialize(serde_path_to_error::Deserializer::new(
        &mut json, &mut track,
    )));
    let path = track.path().to_string();
    let field = if path == "." {
        "body".into()
    } else {
        clip(&path)
    };
    let detail = clip(&plain_words(&error.to_string()));
    let whole = format!("{field}: {detail}");
    ApiError::new(invalid, whole).with(vec![FieldError { field, detail }])
}

/// Serde speaks of Rust's types; a client knows JSON's.
pub(super) fn plain_words(message: &str) -> String {
    const WORDS: [(&str, &str); 13] = [
        ("expected struct Message", "expected an object"),
        ("expected struct NewJob", "expected an object"),
        ("expected struct NewSchedule", "expected an object"),
        ("expected struct ScheduleChange", "expected an object"),
        ("expected struct NewKey", "expected an object"),
        ("expected struct KeyChange", "expected an object"),
        ("expected struct Quota", "expected an object"),
        ("expected a map", "expected an object"),
        ("expected a sequence", "expected an array"),
        ("expected i16", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected enum", "expected one of its names, not"),
    ];
    // Only the end is serde's own: what stands before may be the client's text.
    let Some(at) = message.rfind(", expected ") else {
        return message.to_owned();
    };
    let (before, mut after) = (&message[..at], message[at..].to_owned());
    for (rust, json) in WORDS {
        after = after.replace(rust, json);
    }
    format!("{}{after}", clip(before))
}

/// An array of which at most `most` elements are kept; the others are only counted, so that a
/// small body of very many empty objects does not fill the memory.
#[derive(Debug)]
pub(super) struct AtMost<T> {
    most: usize,
    element: PhantomData<T>,
}

impl<T> Clone for AtMost<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for AtMost<T> {}

/// The elements that were kept, and how many there were.
#[derive(Debug)]
pub(super) struct Kept<T> {
    pub(super) elements: Vec<T>,
    pub(super) total: usize,
}

impl<T> AtMost<T> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            element: PhantomData,
        }
    }
}

impl<'de, T: de::Deserialize<'de>> DeserializeSeed<'de> for AtMost<T> {
    type Value = Kept<T>;

    fn deserialize<D: de::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de, T: de::Deserialize<'de>> Visitor<'de> for AtMost<T> {
    type Value = Kept<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while elements.len() < self.most {
            match array.next_element_seed(Object(PhantomData))? {
                Some(element) => elements.push(element),
                None => {
                    return Ok(Kept {
                        total: elements.len(),
                        elements,
                    });
                }
            }
        }
        let mut total = elements.len();
        while array.next_element::<IgnoredAny>()?.is_some() {
            total += 1;
        }
        Ok(Kept { elements, total })
    }
}

/// A value that is written as an object: a derived struct would take an array of its fields too.
struct Object<T>(PhantomData<T>);

impl<'de, T: de::Deserialize<'de>> DeserializeSeed<'de> for Object<T> {
    type Value = T;

    fn deserialize<D: de::Deserializer<'de>>(self, json: D) -> Result<T, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, T: de::Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(de::value::MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {

    use sluice_shared::api::NewJob;

    use super::*;

    #[test]
    fn what_is_wrong_is_said_and_where() {
        let check = |body: &str, code: Code, field: &str, words: &str| {
            let error =
                parse(body.as_bytes(), PhantomData::<NewJob>, Code::InvalidJob).unwrap_err();
            let said = format!("{error:?}");
            assert_eq!(error.code(), code, "{body}: {said}");
            let fields: Vec<&str> = error.errors().iter().map(|e| e.field.as_str()).collect();
            assert_eq!(fields.join(" "), field, "{body}: {said}");
            assert!(said.contains(words), "{body}: {said}");
        };
        check("", Code::MalformedJson, "", "empty");
        check(" \n", Code::MalformedJson, "", "empty");
        check("{", Code::MalformedJson, "", "line 1 column 1");
        check(
            "{\"prompt\": \"a\",\n \"model\" 1}",
            Code::MalformedJson,
            "",
            "line 2 column 10",
        );
        check(
            "{\"prompt\": \"a\"} x",
            Code::MalformedJson,
            "",
            "trailing characters",
        );
        check(
            "{\"prompt\": \"\\ud800\"}",
            Code::MalformedJson,
            "",
            "line 1",
        );
        check("7", Code::InvalidJob, "body", "expected an object");
        check("\"x\"", Code::InvalidJob, "body", "expected an object");
        check(
            "{\"prompt\": 1}",
            Code::InvalidJob,
            "prompt",
            "expected a string",
        );
        check(
            "{\"promt\": \"a\"}",
            Code::InvalidJob,
            "promt",
            "unknown field `promt`",
        );
        check(
            "{\"prompt\": \"a\", \"prompt\": \"b\"}",
            Code::InvalidJob,
            "body",
            "duplicate field `prompt`",
        );
        check(
            "{\"priority\": \"high\"}",
            Code::InvalidJob,
            "priority",
            "expected a whole number",
        );
        check(
            "{\"priority\": 70000}",
            Code::InvalidJob,
            "priority",
            "expected a whole number",
        );
        check(
            "{\"run_at\": \"soon\"}",
            Code::InvalidJob,
            "run_at",
            "RFC 3339",
        );
        check("{\"timeout\": 30}", Code::InvalidJob, "timeout", "expected");
        check(
            "{\"delivery\": \"twice\"}",
            Code::InvalidJob,
            "delivery",
            "at_most_once",
        );
        check(
            "{\"account\": \"Not An Id\"}",
            Code::InvalidJob,
            "account",
            "lower-case",
        );
        check(
            "{\"tags\": {}}",
            Code::InvalidJob,
            "tags",
            "expected an array",
        );
        check(
            "{\"params\": []}",
            Code::InvalidJob,
            "params",
            "expected an object",
        );
        check(
            "{\"metadata\": {\"a\": 1}}",
            Code::InvalidJob,
            "metadata.a",
            "expected a string",
        );
        check(
            "{\"messages\": [\"x\"]}",
            Code::InvalidJob,
            "messages[0]",
            "expected an object",
        );
        check(
            "{\"messages\": [{\"role\": \"user\"}]}",
            Code::InvalidJob,
            "messages[0]",
            "missing field `content`",
        );
        check(
            "{\"messages\": [{\"role\": \"robot\", \"content\": \"\"}]}",
            Code::InvalidJob,
            "messages[0].role",
            "unknown variant `robot`",
        );
    }

    #[test]
    fn a_mistake_in_an_array_is_counted_from_0() {
        let body = br#"[{"prompt": "a"}, {"prompt": "b"}, {}, {"prompt": 4}]"#;
        let error = parse(body, AtMost::<NewJob>::new(9), Code::InvalidJob).unwrap_err();
        assert_eq!(error.errors()[0].field, "[3].prompt");
    }

    #[test]
    fn more_than_the_most_are_counted_and_not_kept() {
        let body = format!("[{}{{}}]", "{},".repeat(20));
        let kept = parse(body.as_bytes(), AtMost::<NewJob>::new(5), Code::InvalidJob).unwrap();
        assert_eq!((kept.elements.len(), kept.total), (5, 21));
    }

    #[test]
    fn a_long_text_in_the_wrong_place_is_not_repeated() {
        let body = format!("{{\"messages\": \"{}\"}}", "x".repeat(100_000));
        let error = parse(body.as_bytes(), PhantomData::<NewJob>, Code::InvalidJob).unwrap_err();
        let detail = &error.errors()[0].detail;
        assert!(detail.len() < 400 && detail.contains("x…"), "{detail}");
    }
}
