//! When a provider says that it may be asked again: the figures in its headers and words.
//! Pure: the time now is a parameter.

use std::time::Duration;

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use reqwest::header::HeaderMap;
use sluice_shared::domain::{Figure, ThrottleKind, Time};

/// A wait from which on a limit is no burst any more but a window.
const LONG: Duration = Duration::from_secs(15 * 60);
/// A wait beyond this is a mistake, not a limit: the longest real ones end with a month.
const IMPLAUSIBLE: Duration = Duration::from_secs(100 * 24 * 3600);

/// `time`, unless it is too far off to be meant.
pub(super) fn plausible(time: Time, now: Time) -> Option<Time> {
    (time.since(now) < IMPLAUSIBLE).then_some(time)
}

/// The time that `retry-after-ms` or `retry-after` names: milliseconds, seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Time) -> Option<Time> {
    if let Some(millis) = text(headers, "retry-after-ms").and_then(|text| text.parse().ok()) {
        return plausible(now + f64_seconds(millis)? / 1000, now);
    }
    let value = text(headers, "retry-after")?;
    if let Ok(seconds) = value.parse() {
        return plausible(now + f64_seconds(seconds)?, now);
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    plausible(Time::from_millis(date.timestamp().as_millisecond()), now)
}

/// The earliest reset among the `anthropic-ratelimit-*` limits that have nothing left. They
/// refill continuously, so that the earliest is when it is worth asking again.
pub(super) fn anthropic_reset(headers: &HeaderMap, now: Time) -> Option<Time> {
    let resets = ["requests", "tokens", "input-tokens", "output-tokens"].map(|limit| {
        let remaining = text(headers, &format!("anthropic-ratelimit-{limit}-remaining"))?;
        let reset = text(headers, &format!("anthropic-ratelimit-{limit}-reset"))?;
        (remaining == "0")
            .then(|| reset.parse::<Time>().ok())
            .flatten()
    });
    resets
        .into_iter()
        .flatten()
        .filter_map(|time| plausible(time, now))
        .min()
}

/// The earliest reset among the `x-ratelimit-*` limits of OpenAI that have nothing left.
pub(super) fn openai_reset(headers: &HeaderMap, now: Time) -> Option<Time> {
    let resets = ["requests", "tokens"].map(|limit| {
        let remaining = text(headers, &format!("x-ratelimit-remaining-{limit}"))?;
        let reset = text(headers, &format!("x-ratelimit-reset-{limit}"))?;
        (remaining == "0")
            .then(|| duration(reset))
            .flatten()
            .map(|wait| now + wait)
    });
    resets
        .into_iter()
        .flatten()
        .filter_map(|time| plausible(time, now))
        .min()
}

/// What Anthropic's API says about its limits: `anthropic-ratelimit-*` of a key, and
/// `anthropic-ratelimit-unified-*` of a subscription.
pub(super) fn anthropic_figures(headers: &HeaderMap, now: Time) -> Vec<Figure> {
    let mut figures = Vec::new();
    for name in ["requests", "tokens", "input-tokens", "output-tokens"] {
        let value = |part| text(headers, &format!("anthropic-ratelimit-{name}-{part}"));
        let reset = value("reset").and_then(|reset| reset.parse().ok());
        figures.extend(counted(
            name,
            value("limit"),
            value("remaining"),
            reset,
            now,
        ));
    }
    for (name, full) in [
        ("5h", "five_hour"),
        ("7d", "seven_day"),
        ("7d_oi", "seven_day_opus"),
    ] {
        let value = |part| {
            text(
                headers,
                &format!("anthropic-ratelimit-unified-{name}-{part}"),
            )
        };
        let figure = Figure {
            name: full.to_owned(),
            utilization: value("utilization").and_then(share),
            resets_at: value("reset").and_then(unix_seconds),
            status: value("status").map(ToOwned::to_owned),
            heard_at: now,
            ..Figure::default()
        };
        if figure.utilization.is_some() || figure.status.is_some() {
            figures.push(figure);
        }
    }
    figures
}

/// What OpenAI says about its limits: `x-ratelimit-*`, with spans as resets.
pub(super) fn openai_figures(headers: &HeaderMap, now: Time) -> Vec<Figure> {
    let figure = |name| {
        let value = |part| text(headers, &format!("x-ratelimit-{part}-{name}"));
        let reset = value("reset").and_then(duration).map(|wait| now + wait);
        counted(name, value("limit"), value("remaining"), reset, now)
    };
    ["requests", "tokens"]
        .into_iter()
        .filter_map(figure)
        .collect()
}

fn counted(
    name: &str,
    limit: Option<&str>,
    remaining: Option<&str>,
    reset: Option<Time>,
    now: Time,
) -> Option<Figure> {
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
    let figure = Figure {
        name: name.to_owned(),
        limit: number(limit),
        remaining: number(remaining),
        resets_at: reset.and_then(|reset| plausible(reset, now)),
        heard_at: now,
        ..Figure::default()
    };
    (figure.limit.is_some() || figure.remaining.is_some()).then_some(figure)
}

/// Which limit of a subscription refuses, and until when, when the headers say that one does.
pub(super) fn unified_rejection(
    headers: &HeaderMap,
    now: Time,
) -> Option<(ThrottleKind, Option<Time>)> {
    let value = |part| text(headers, &format!("anthropic-ratelimit-unified-{part}"));
    (value("status")? == "rejected").then_some(())?;
    let until = value("reset").and_then(unix_seconds);
    let until = until.and_then(|until| plausible(until, now));
    Some((plan_limit(value("representative-claim")), until))
}

/// What kind of limit a subscription's is, by its name there.
pub(super) fn plan_limit(name: Option<&str>) -> ThrottleKind {
    match name {
        Some("seven_day_opus" | "seven_day_sonnet") => ThrottleKind::Model,
        Some("overage" | "seven_day_overage_included") => ThrottleKind::SpendCap,
        _ => ThrottleKind::Window,
    }
}

fn share(text: &str) -> Option<f64> {
    let share: f64 = text.parse().ok()?;
    share.is_finite().then(|| share.clamp(0.0, 1.0))
}

fn unix_seconds(text: &str) -> Option<Time> {
    let seconds = f64_seconds(text.parse().ok()?)?;
    Some(Time::from_millis(i64::try_from(seconds.as_millis()).ok()?))
}

/// Whether a limit that ends at `until` is a burst or a window.
pub(super) fn kind(until: Option<Time>, now: Time) -> ThrottleKind {
    match until {
        Some(until) if until.since(now) >= LONG => ThrottleKind::Window,
        _ => ThrottleKind::Burst,
    }
}

/// The first instant of the next month in UTC, when spend limits begin anew.
pub(super) fn next_month(now: Time) -> Option<Time> {
    let now = Timestamp::from_millisecond(now.as_millis()).ok()?;
    let today = TimeZone::UTC.to_datetime(now).date();
    midnight(today.first_of_month().checked_add(1.month()).ok()?)
}

/// The time in "You will regain access on 2026-12-01 at 00:00 UTC."
pub(super) fn regain_access(message: &str) -> Option<Time> {
    let (_, rest) = message.split_once("regain access on ")?;
    let midnight = midnight(rest.get(..10)?.parse().ok()?)?;
    let clock = rest.get(10..).and_then(|rest| rest.strip_prefix(" at "));
    let clock = clock.and_then(|clock| {
        let hours: u64 = clock.get(..2)?.parse().ok()?;
        let minutes: u64 = clock.get(2..5)?.strip_prefix(':')?.parse().ok()?;
        Some(Duration::from_secs(
            hours.min(24) * 3600 + minutes.min(60) * 60,
        ))
    });
    Some(midnight + clock.unwrap_or_default())
}

fn midnight(date: Date) -> Option<Time> {
    let midnight = TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
    Some(Time::from_millis(midnight.as_millisecond()))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn f64_seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// A span as OpenAI writes it: `1s`, `6m0s`, `120ms`, `7.66s`, `1d2h`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        let part = f64_seconds(number.parse::<f64>().ok()? * seconds)?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn now() -> Time {
        "2026-11-23T20:00:00Z".parse().unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    fn seen(time: Option<Time>) -> String {
        time.map_or_else(|| "-".into(), |time| time.to_string())
    }

    #[test]
    fn every_form_of_retry_after_is_read() {
        let mut table = String::new();
        for pairs in [
            [("retry-after", "30")].as_slice(),
            &[("retry-after", "0.5")],
            &[("retry-after", "Mon, 23 Nov 2026 20:05:00 GMT")],
            &[("retry-after", "30"), ("retry-after-ms", "1500")],
            &[("retry-after", "-1")],
            &[("retry-after", "soon")],
            &[("retry-after", "1e300")],
            &[("retry-after", "99999999")],
            &[],
        ] {
            table += &format!("{pairs:?}: {}\n", seen(retry_after(&headers(pairs), now())));
        }
        insta::assert_snapshot!(table, @r#"
        [("retry-after", "30")]: 2026-11-23T20:00:30.000Z
        [("retry-after", "0.5")]: 2026-11-23T20:00:00.500Z
        [("retry-after", "Mon, 23 Nov 2026 20:05:00 GMT")]: 2026-11-23T20:05:00.000Z
        [("retry-after", "30"), ("retry-after-ms", "1500")]: 2026-11-23T20:00:01.500Z
        [("retry-after", "-1")]: -
        [("retry-after", "soon")]: -
        [("retry-after", "1e300")]: -
        [("retry-after", "99999999")]: -
        []: -
        "#);
    }

    #[test]
    fn only_an_exhausted_limit_names_the_reset() {
        let some = headers(&[
            ("anthropic-ratelimit-requests-remaining", "12"),
            ("anthropic-ratelimit-requests-reset", "2026-11-23T20:00:01Z"),
            ("anthropic-ratelimit-tokens-remaining", "0"),
            ("anthropic-ratelimit-tokens-reset", "2026-11-23T20:03:00Z"),
            ("anthropic-ratelimit-input-tokens-remaining", "0"),
            (
                "anthropic-ratelimit-input-tokens-reset",
                "2026-11-23T20:02:00Z",
            ),
            ("anthropic-ratelimit-output-tokens-remaining", "0"),
            ("anthropic-ratelimit-output-tokens-reset", "whenever"),
        ]);
        assert_eq!(
            seen(anthropic_reset(&some, now())),
            "2026-11-23T20:02:00.000Z"
        );
        let some = headers(&[
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "6m0s"),
            ("x-ratelimit-remaining-tokens", "5"),
            ("x-ratelimit-reset-tokens", "1s"),
        ]);
        assert_eq!(seen(openai_reset(&some, now())), "2026-11-23T20:06:00.000Z");
        assert_eq!(openai_reset(&headers(&[]), now()), None);
    }

    #[test]
    fn what_a_provider_says_about_its_limits_is_learned() {
        let of_a_key = headers(&[
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "12"),
            ("anthropic-ratelimit-requests-reset", "2026-11-23T20:00:01Z"),
            ("anthropic-ratelimit-input-tokens-limit", "lots"),
        ]);
        let of_a_plan = headers(&[
            ("anthropic-ratelimit-unified-5h-utilization", "0.92"),
            ("anthropic-ratelimit-unified-5h-reset", "1795557600"),
            ("anthropic-ratelimit-unified-5h-status", "allowed_warning"),
            ("anthropic-ratelimit-unified-7d-utilization", "NaN"),
        ]);
        let of_openai = headers(&[
            ("x-ratelimit-limit-tokens", "1000"),
            ("x-ratelimit-remaining-tokens", "900"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]);
        let line = |figure: Figure| {
            let Figure {
                name,
                limit,
                remaining,
                utilization,
                resets_at,
                status,
                ..
            } = figure;
            format!(
                "{name} {limit:?} {remaining:?} {utilization:?} {} {status:?}",
                seen(resets_at)
            )
        };
        let lines: Vec<String> = anthropic_figures(&of_a_key, now())
            .into_iter()
            .chain(anthropic_figures(&of_a_plan, now()))
            .chain(openai_figures(&of_openai, now()))
            .map(line)
            .collect();
        assert_eq!(
            lines,
            [
                "requests Some(50) Some(12) None 2026-11-23T20:00:01.000Z None",
                "five_hour None None Some(0.92) 2026-11-24T22:00:00.000Z Some(\"allowed_warning\")",
                "tokens Some(1000) Some(900) None 2026-11-23T20:06:00.000Z None",
            ]
        );
    }

    #[test]
    fn a_plan_that_refuses_names_its_limit_and_a_warning_is_no_refusal() {
        let refusal = |status, claim| {
            let headers = headers(&[
                ("anthropic-ratelimit-unified-status", status),
                ("anthropic-ratelimit-unified-representative-claim", claim),
                ("anthropic-ratelimit-unified-reset", "1795557600"),
            ]);
            unified_rejection(&headers, now()).map(|(kind, until)| (kind, seen(until)))
        };
        let reset = "2026-11-24T22:00:00.000Z".to_owned();
        assert_eq!(
            refusal("rejected", "five_hour"),
            Some((ThrottleKind::Window, reset.clone()))
        );
        assert_eq!(
            refusal("rejected", "seven_day_opus"),
            Some((ThrottleKind::Model, reset.clone()))
        );
        assert_eq!(
            refusal("rejected", "overage"),
            Some((ThrottleKind::SpendCap, reset))
        );
        assert_eq!(refusal("allowed_warning", "five_hour"), None);
    }

    #[test]
    fn spans_are_read_as_openai_writes_them() {
        let millis = |text| duration(text).map(|span| span.as_millis());
        assert_eq!(millis("1s"), Some(1000));
        assert_eq!(millis("6m0s"), Some(360_000));
        assert_eq!(millis("120ms"), Some(120));
        assert_eq!(millis("7.66s"), Some(7660));
        assert_eq!(millis("1d2h"), Some(93_600_000));
        for bad in ["", "s", "5", "1x", "1..2s", "-1s", "é"] {
            assert_eq!(millis(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_month_ends_at_its_end() {
        let next = |text: &str| seen(next_month(text.parse().unwrap()));
        assert_eq!(next("2026-12-31T23:59:59Z"), "2027-01-01T00:00:00.000Z");
        assert_eq!(next("2027-01-31T00:00:00Z"), "2027-02-01T00:00:00.000Z");
    }

    #[test]
    fn the_date_in_the_words_is_read_and_nothing_else() {
        let at = |text| seen(regain_access(text));
        assert_eq!(
            at("You will regain access on 2026-12-01 at 06:30 UTC."),
            "2026-12-01T06:30:00.000Z"
        );
        assert_eq!(
            at("You will regain access on 2026-12-01."),
            "2026-12-01T00:00:00.000Z"
        );
        assert_eq!(at("You will regain access on Monday"), "-");
        assert_eq!(at("regain access on 2026-12-é"), "-");
    }

    #[test]
    fn a_long_wait_is_a_window_and_a_short_one_a_burst() {
        assert_eq!(kind(None, now()), ThrottleKind::Burst);
        assert_eq!(
            kind(Some(now() + Duration::from_secs(60)), now()),
            ThrottleKind::Burst
        );
        assert_eq!(
            kind(Some(now() + Duration::from_secs(3600)), now()),
            ThrottleKind::Window
        );
    }
}
