//! The trace that a submit belongs to (W3C Trace Context).

use std::collections::HashMap;

use axum::http::HeaderMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header's name, here and on the broker.
const TRACEPARENT: &str = "traceparent";

/// A span for a submit, and the trace context that its jobs carry on to their workers. Without
/// tracing there is no span, and the client's own context is handed on as it came.
pub(super) fn of_submit(active: bool, headers: &HeaderMap) -> (Span, Option<String>) {
    let given = headers
        .get(TRACEPARENT)
        .and_then(|value| value.to_str().ok())
        .filter(|value| is_valid(value) && headers.get_all(TRACEPARENT).iter().count() == 1);
    if !active {
        return (Span::none(), given.map(str::to_owned));
    }
    let span = tracing::info_span!(parent: None, "submit", otel.kind = "server");
    let (carried, own) = opentelemetry::global::get_text_map_propagator(|context| {
        if let Some(given) = given {
            let carrier = HashMap::from([(TRACEPARENT.to_owned(), given.to_owned())]);
            // Without a layer for traces there is nothing to belong to.
            drop(span.set_parent(context.extract(&carrier)));
        }
        let mut carrier = HashMap::new();
        context.inject_context(&span.context(), &mut carrier);
        (given, carrier.remove(TRACEPARENT))
    });
    let traceparent = own.or_else(|| carried.map(str::to_owned));
    (span, traceparent)
}

/// `00-TRACE-PARENT-FLAGS` in lower-case hexadecimal, no id all zeros.
fn is_valid(value: &str) -> bool {
    let parts: Vec<&str> = value.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else {
        return false;
    };
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let some = |part: &str| part.bytes().any(|byte| byte != b'0');
    version == "00"
        && hex(trace, 32)
        && some(trace)
        && hex(parent, 16)
        && some(parent)
        && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_a_valid_context_is_handed_on() {
        for (value, expected) in [
            (GOOD, true),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
                false,
            ),
            (
                "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                false,
            ),
            (
                "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
                false,
            ),
            (
                "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                false,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                false,
            ),
            ("garbage", false),
            ("", false),
        ] {
            let headers =
                HeaderMap::from_iter([(TRACEPARENT.parse().unwrap(), value.parse().unwrap())]);
            let (_, carried) = of_submit(false, &headers);
            assert_eq!(carried.as_deref(), expected.then_some(value), "{value}");
        }
    }

    #[test]
    fn of_two_contexts_none_is_handed_on() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!(of_submit(false, &headers).1, None);
    }
}
