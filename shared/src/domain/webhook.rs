//! Webhooks: the kinds of events, who gets which, and when a delivery is tried again. Pure: what
//! an endpoint answered, the time and chance are parameters.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Span, State, Time};

/// The longest that an endpoint may ask to be left alone for.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How long an endpoint that says it has too much to do is left alone at least.
const THROTTLED: Duration = Duration::from_secs(30);

/// A kind of event.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub enum EventKind {
    /// A job has succeeded.
    #[serde(rename = "job.succeeded")]
    JobSucceeded,
    /// A job has failed.
    #[serde(rename = "job.failed")]
    JobFailed,
    /// A job was cancelled.
    #[serde(rename = "job.cancelled")]
    JobCancelled,
    /// A job had not begun by its `expires_at`.
    #[serde(rename = "job.expired")]
    JobExpired,
    /// All jobs of a batch have ended.
    #[serde(rename = "batch.ended")]
    BatchEnded,
    /// An endpoint has brought nothing but failures for days, or is gone, and gets nothing more.
    #[serde(rename = "webhook.disabled")]
    WebhookDisabled,
    /// Someone asked for a test.
    #[serde(rename = "webhook.test")]
    WebhookTest,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::JobSucceeded,
        Self::JobFailed,
        Self::JobCancelled,
        Self::JobExpired,
        Self::BatchEnded,
        Self::WebhookDisabled,
        Self::WebhookTest,
    ];

    /// Its name, in the style of Standard Webhooks.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobSucceeded => "job.succeeded",
            Self::JobFailed => "job.failed",
            Self::JobCancelled => "job.cancelled",
            Self::JobExpired => "job.expired",
            Self::BatchEnded => "batch.ended",
            Self::WebhookDisabled => "webhook.disabled",
            Self::WebhookTest => "webhook.test",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The kind that tells of a job's coming into `state`; none for most states.
    #[must_use]
    pub fn of(state: State) -> Option<Self> {
        match state {
            State::Succeeded => Some(Self::JobSucceeded),
            State::Failed => Some(Self::JobFailed),
            State::Cancelled => Some(Self::JobCancelled),
            State::Expired => Some(Self::JobExpired),
            State::Queued | State::Dispatched | State::Running => None,
        }
    }

    /// Whether it tells of a job.
    #[must_use]
    pub fn is_of_a_job(self) -> bool {
        match self {
            Self::JobSucceeded | Self::JobFailed | Self::JobCancelled | Self::JobExpired => true,
            Self::BatchEnded | Self::WebhookDisabled | Self::WebhookTest => false,
        }
    }

    /// Whether someone who asked for `wanted` gets it; who asked for none in particular gets all.
    #[must_use]
    pub fn is_wanted(self, wanted: &[Self]) -> bool {
        wanted.is_empty() || wanted.contains(&self)
    }
}

/// What came of one try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status; none when nothing was answered.
    pub status: Option<u16>,
    /// How long the endpoint asked to be left alone for.
    pub retry_after: Option<Duration>,
}

/// What is to be done after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has arrived.
    Delivered,
    /// It is to be tried again after so long.
    Again(Duration),
    /// It was tried often enough.
    GiveUp,
    /// The endpoint wants nothing more, ever.
    Gone,
}

/// What is to be done after try number `tries`, counted from 1. `chance` is in `[0, 1)`.
///
/// The rest is that of the schedule, give or take a tenth. An endpoint that names a time is left
/// alone for at least that long, up to a day; one with too much to do for at least 30 s.
#[must_use]
pub fn next(schedule: &[Span], tries: u32, answer: Answer, chance: f64) -> Next {
    match answer.status {
        Some(200..=299) => return Next::Delivered,
        Some(410) => return Next::Gone,
        _ => {}
    }
    let step = usize::try_from(tries.saturating_sub(1)).unwrap_or(usize::MAX);
    let Some(step) = schedule.get(step) else {
        return Next::GiveUp;
    };
    let chance = chance.clamp(0.0, 1.0);
    let rest = step.0.mul_f64(0.9 + 0.2 * chance);
    let asked = match (answer.retry_after, answer.status) {
        (Some(asked), _) => asked.min(MOST_RETRY_AFTER),
        (None, Some(429 | 502 | 504)) => THROTTLED,
        (None, _) => Duration::ZERO,
    };
    // Those who were sent away together do not come back together.
    Next::Again(rest.max(asked.mul_f64(1.0 + 0.1 * chance)))
}

/// Whether an endpoint that has brought nothing but failures since `failing_since` is to be
/// disabled at `now`.
#[must_use]
pub fn is_hopeless(failing_since: Option<Time>, now: Time, after: Span) -> bool {
    failing_since.is_some_and(|since| now.since(since) >= after.0)
}

/// How long a `Retry-After` header asks for: seconds, or a date.
#[must_use]
pub fn retry_after(header: &str, now: Time) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(header).ok()?;
    let date = Time::from_millis(date.timestamp().as_millisecond());
    Some(date.since(now))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCHEDULE: [Span; 3] = [Span::seconds(5), Span::seconds(300), Span::seconds(1800)];

    fn after(tries: u32, status: u16, retry_after: Option<u64>) -> Next {
        let answer = Answer {
            status: (status > 0).then_some(status),
            retry_after: retry_after.map(Duration::from_secs),
        };
        next(&SCHEDULE, tries, answer, 0.5)
    }

    fn again(seconds: u64) -> Next {
        Next::Again(Duration::from_secs(seconds))
    }

    #[test]
    fn every_answer_has_its_consequence() {
        for (tries, status, retry_after, expected) in [
            (1, 200, None, Next::Delivered),
            (9, 204, Some(60), Next::Delivered),
            (1, 410, None, Next::Gone),
            (1, 0, None, again(5)),
            (2, 500, None, again(300)),
            (3, 404, None, again(1800)),
            (4, 500, None, Next::GiveUp),
            (4, 500, Some(5), Next::GiveUp),
            // A redirect is a failure.
            (1, 301, None, again(5)),
            (1, 307, None, again(5)),
            (2, 429, None, again(300)),
        ] {
            let heard = after(tries, status, retry_after);
            assert_eq!(heard, expected, "{tries} {status} {retry_after:?}");
        }
    }

    #[test]
    fn an_endpoint_is_left_alone_for_as_long_as_it_asks() {
        for (tries, status, retry_after, least, most) in [
            (1, 503, Some(60), 60, 66),
            (2, 503, Some(60), 300, 300),
            (1, 429, None, 30, 33),
            (1, 504, None, 30, 33),
            (1, 429, Some(1), 5, 5),
            (1, 503, Some(u64::MAX), 86_400, 95_040),
        ] {
            let Next::Again(rest) = after(tries, status, retry_after) else {
                panic!("{status} is tried again");
            };
            let rest = rest.as_secs();
            assert!(
                (least..=most).contains(&rest),
                "{status} {retry_after:?}: {rest}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_rest_is_its_step_give_or_take_a_tenth(tries in 1u32..4, chance in 0.0f64..1.0) {
            let answer = Answer { status: Some(500), retry_after: None };
            let Next::Again(rest) = next(&SCHEDULE, tries, answer, chance) else {
                panic!("it is tried again");
            };
            let step = SCHEDULE[tries as usize - 1].0.as_secs_f64();
            let share = rest.as_secs_f64() / step;
            prop_assert!((0.9..1.1).contains(&share), "{share}");
        }
    }

    #[test]
    fn a_retry_after_is_read_in_both_forms() {
        let now: Time = "2026-11-23T20:00:00Z".parse().unwrap();
        for (header, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Mon, 23 Nov 2026 20:01:00 GMT", Some(60)),
            ("Mon, 23 Nov 2026 19:00:00 GMT", Some(0)),
            ("soon", None),
            ("-5", None),
            ("", None),
        ] {
            let read = retry_after(header, now).map(|span| span.as_secs());
            assert_eq!(read, seconds, "{header}");
        }
    }

    #[test]
    fn a_kind_has_one_name() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::from_name(kind.as_str()), Some(kind));
            assert_eq!(serde_json::json!(kind), kind.as_str());
        }
        for state in State::ALL {
            assert_eq!(EventKind::of(state).is_some(), state.is_terminal());
        }
    }

    #[test]
    fn an_endpoint_is_given_up_after_days() {
        let since = Some(Time::from_millis(0));
        let day = Span::seconds(86_400);
        assert!(!is_hopeless(None, Time::from_millis(i64::MAX), day));
        assert!(!is_hopeless(since, Time::from_millis(86_399_999), day));
        assert!(is_hopeless(since, Time::from_millis(86_400_000), day));
    }
}
