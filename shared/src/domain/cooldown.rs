//! Cooldowns: why an account takes no jobs for a while, or none of one family of models, and how
//! that ends.
//!
//! Each cause is a state of its own with its own exit, so that a burst is never taken for a weekly
//! limit, nor an empty purse for a throttle. When its time has come an account is not open but
//! *half-open*: one job, the canary, is let through, and only its answer opens the account. So no
//! cooldown ends in a flood, and none outlives its cause.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Outcome, ThrottleKind, Time, retry};

/// What keeps an account from taking jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A limit of seconds to minutes.
    Burst,
    /// A long window of the plan, such as 5 hours or a week.
    Window,
    /// A long window of one family of models; the account's other models go on.
    Model,
    /// A spend cap: until it is raised or its period ends, so that it is tried each hour.
    SpendCap,
    /// The provider limits the machine of the worker, whatever the account.
    Host,
    /// The provider itself is overloaded.
    Overload,
}

/// A spend cap is tried this often, whatever end was named: it may be raised at any time.
const SPEND_CAP_TRY: Duration = Duration::from_secs(3600);

impl Cause {
    /// The first and the longest rest when the provider names no time.
    fn rests(self) -> (Duration, Duration) {
        let (first, most) = match self {
            Self::Burst => (2, 300),
            Self::Overload => (2, 120),
            Self::Host => (5, 300),
            Self::Window | Self::Model => (300, 3600),
            Self::SpendCap => (1800, 6 * 3600),
        };
        (Duration::from_secs(first), Duration::from_secs(most))
    }
}

impl From<ThrottleKind> for Cause {
    fn from(kind: ThrottleKind) -> Self {
        match kind {
            ThrottleKind::Burst => Self::Burst,
            ThrottleKind::Window => Self::Window,
            ThrottleKind::Model => Self::Model,
            ThrottleKind::SpendCap => Self::SpendCap,
            ThrottleKind::Host => Self::Host,
        }
    }
}

/// The family that a model belongs to: limits of one family are told apart by these words, and a
/// model without one is a family of its own.
#[must_use]
pub fn family(model: &str) -> String {
    let model = model.to_ascii_lowercase();
    let known = ["opus", "sonnet", "haiku", "fable"];
    let known = known.into_iter().find(|word| model.contains(word));
    known.map_or(model, ToOwned::to_owned)
}

/// One reason why an account takes no jobs, until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cooldown {
    /// Why.
    pub cause: Cause,
    /// With [`Cause::Model`], the family of models; `None` is the account's default model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// No new job before this time; then one.
    pub until: Time,
    /// When the provider says that it ends, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Time>,
    /// Refusals in a row without an answer in between; the rest grows with it.
    pub streak: u32,
    /// A canary is under way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probing: bool,
    /// The provider's words.
    pub reason: String,
}

impl Cooldown {
    /// Whether it concerns a job that asks for `model`.
    #[must_use]
    pub fn concerns(&self, model: Option<&str>) -> bool {
        match (self.cause, &self.family, model) {
            (Cause::Model, Some(cooling), Some(model)) => *cooling == family(model),
            (Cause::Model, None, Some(_)) => false,
            // Which model the account takes for it, only the account knows.
            (Cause::Model, _, None) | (_, _, _) => true,
        }
    }
}

/// Whether a job may go to an account now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Open,
    /// One may, alone.
    HalfOpen,
    /// It may not before this time; `None` while a canary has not answered.
    Shut(Option<Time>),
}

/// What is heard of an attempt that has left its account.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// The model that it asked for.
    pub model: Option<&'a str>,
    /// When it was dispatched.
    pub dispatched_at: Time,
    /// How it ended; `None` when nobody knows or it never ran.
    pub outcome: Option<&'a Outcome>,
}

/// All that keeps an account from taking jobs for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cooldowns(Vec<Cooldown>);

impl Cooldowns {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Cooldown> {
        self.0.iter()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one of the whole account that ends last.
    #[must_use]
    pub fn longest(&self) -> Option<&Cooldown> {
        self.0
            .iter()
            .filter(|cooldown| cooldown.cause != Cause::Model)
            .max_by_key(|cooldown| cooldown.until)
    }

    /// Whether a job that asks for `model` may go to the account at `now`.
    #[must_use]
    pub fn gate(&self, model: Option<&str>, now: Time) -> Gate {
        let mut gate = Gate::Open;
        for cooldown in self.0.iter().filter(|cooldown| cooldown.concerns(model)) {
            let this = if cooldown.until > now {
                Gate::Shut(Some(cooldown.until))
            } else if cooldown.probing {
                Gate::Shut(None)
            } else {
                Gate::HalfOpen
            };
            gate = match (gate, this) {
                (Gate::Shut(one), Gate::Shut(other)) => Gate::Shut(one.max(other)),
                (Gate::Shut(until), _) | (_, Gate::Shut(until)) => Gate::Shut(until),
                (_, this) => this,
            };
        }
        gate
    }

    /// A canary that asks for `model` is let through.
    pub fn probe(&mut self, model: Option<&str>) {
        for cooldown in self
            .0
            .iter_mut()
            .filter(|cooldown| cooldown.concerns(model))
        {
            cooldown.probing = true;
        }
    }

    /// Takes in what is heard of an attempt. `chance` in `[0, 1)` spreads rests without a figure.
    pub fn hear(&mut self, heard: &Heard<'_>, now: Time, chance: f64) {
        let is_canary = |cooldown: &Cooldown| {
            cooldown.until <= heard.dispatched_at && cooldown.concerns(heard.model)
        };
        for cooldown in self.0.iter_mut().filter(|cooldown| is_canary(cooldown)) {
            cooldown.probing = false;
        }
        match heard.outcome {
            // It was let in, whatever was wrong with what it asked.
            Some(Outcome::Completed(_) | Outcome::Rejected { .. }) => {
                self.0.retain(|cooldown| !is_canary(cooldown));
            }
            Some(Outcome::Throttled {
                until,
                throttle,
                detail,
            }) => self.refused((*throttle).into(), *until, detail, heard, now, chance),
            Some(Outcome::Overloaded { until, detail }) => {
                self.refused(Cause::Overload, *until, detail, heard, now, chance);
            }
            // A credential or an empty purse changes the standing, and no cooldown.
            _ => {}
        }
    }

    fn refused(
        &mut self,
        cause: Cause,
        resets_at: Option<Time>,
        detail: &str,
        heard: &Heard<'_>,
        now: Time,
        chance: f64,
    ) {
        let family = match cause {
            Cause::Model => heard.model.map(family),
            _ => None,
        };
        let resets_at = resets_at.filter(|end| *end > now);
        let known = self
            .0
            .iter_mut()
            .find(|known| known.cause == cause && known.family == family);
        let (streak, not_before) = match &known {
            None => (1, now),
            // The canary, or one that was sent when all was well.
            Some(known) if heard.dispatched_at >= known.until => {
                (known.streak.saturating_add(1), now)
            }
            // Many refusals at once are one; an old one without a figure says nothing new.
            Some(known) if known.until <= now && resets_at.is_none() => return,
            Some(known) => (known.streak, known.until),
        };
        let (first, most) = cause.rests();
        let until = match (cause, resets_at) {
            (Cause::SpendCap, Some(end)) => end.min(now + SPEND_CAP_TRY),
            (_, Some(end)) => end,
            (_, None) if not_before > now => not_before,
            (_, None) => now + retry::rest(first, most, streak, chance),
        };
        let cooldown = Cooldown {
            cause,
            family,
            until: until.max(not_before),
            resets_at,
            streak,
            probing: false,
            reason: detail.chars().take(500).collect(),
        };
        match known {
            Some(known) => {
                let resets_at = known.resets_at.max(cooldown.resets_at);
                *known = Cooldown {
                    resets_at,
                    ..cooldown
                };
            }
            None => self.0.push(cooldown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000_000_000);

    fn after(seconds: u64) -> Time {
        NOW + Duration::from_secs(seconds)
    }

    fn throttled(throttle: ThrottleKind, until: Option<Time>) -> Outcome {
        Outcome::Throttled {
            until,
            throttle,
            detail: "slow down".into(),
        }
    }

    fn completed() -> Outcome {
        Outcome::Completed(Default::default())
    }

    /// An attempt that was dispatched at one time and heard of at another.
    fn hear(cooldowns: &mut Cooldowns, sent: Time, heard: Time, outcome: &Outcome) {
        let heard_of = Heard {
            model: None,
            dispatched_at: sent,
            outcome: Some(outcome),
        };
        cooldowns.hear(&heard_of, heard, 0.0);
    }

    fn cooling(throttle: ThrottleKind, until: Option<Time>) -> Cooldowns {
        let mut cooldowns = Cooldowns::default();
        hear(&mut cooldowns, NOW, NOW, &throttled(throttle, until));
        cooldowns
    }

    #[test]
    fn a_longer_throttle_extends_a_shorter_and_never_the_reverse() {
        let mut cooldowns = cooling(ThrottleKind::Burst, Some(after(5)));
        for (end, expected) in [(60, 60), (5, 60)] {
            hear(
                &mut cooldowns,
                NOW,
                NOW,
                &throttled(ThrottleKind::Burst, Some(after(end))),
            );
            assert_eq!(cooldowns.gate(None, NOW), Gate::Shut(Some(after(expected))));
        }
    }

    #[test]
    fn many_refusals_at_once_are_one() {
        let mut cooldowns = cooling(ThrottleKind::Burst, None);
        let once = cooldowns.clone();
        for _ in 0..50 {
            hear(
                &mut cooldowns,
                NOW,
                NOW,
                &throttled(ThrottleKind::Burst, None),
            );
        }
        assert_eq!(cooldowns, once);
    }

    #[test]
    fn an_account_comes_back_by_one_canary_and_its_answer_opens_it() {
        let mut cooldowns = cooling(ThrottleKind::Burst, Some(after(20)));
        assert_eq!(cooldowns.gate(None, after(19)), Gate::Shut(Some(after(20))));
        assert_eq!(cooldowns.gate(None, after(20)), Gate::HalfOpen);
        cooldowns.probe(None);
        assert_eq!(cooldowns.gate(None, after(21)), Gate::Shut(None));
        // One that was sent before the throttle proves nothing.
        hear(&mut cooldowns, NOW, after(21), &completed());
        assert_eq!(cooldowns.gate(None, after(21)), Gate::Shut(None));
        hear(&mut cooldowns, after(20), after(22), &completed());
        assert_eq!(cooldowns.gate(None, after(22)), Gate::Open);
        assert!(cooldowns.is_empty());
    }

    #[test]
    fn a_canary_that_is_refused_rests_longer_and_one_that_is_lost_makes_way() {
        let mut cooldowns = cooling(ThrottleKind::Burst, None);
        let Gate::Shut(Some(first)) = cooldowns.gate(None, NOW) else {
            panic!()
        };
        cooldowns.probe(None);
        let lost = Heard {
            model: None,
            dispatched_at: first,
            outcome: None,
        };
        cooldowns.hear(&lost, first, 0.0);
        assert_eq!(cooldowns.gate(None, first), Gate::HalfOpen);
        cooldowns.probe(None);
        hear(
            &mut cooldowns,
            first,
            first,
            &throttled(ThrottleKind::Burst, None),
        );
        let Gate::Shut(Some(second)) = cooldowns.gate(None, first) else {
            panic!()
        };
        assert!(second.since(first) > first.since(NOW));
    }

    #[test]
    fn each_cause_has_an_end_of_its_own() {
        let mut cooldowns = cooling(ThrottleKind::Burst, Some(after(5)));
        hear(
            &mut cooldowns,
            NOW,
            NOW,
            &throttled(ThrottleKind::Window, Some(after(18_000))),
        );
        assert_eq!(
            cooldowns.gate(None, after(6)),
            Gate::Shut(Some(after(18_000)))
        );
        // The window's end is not the burst's, and neither has taken the other's place.
        assert_eq!(cooldowns.iter().count(), 2);
        hear(&mut cooldowns, after(18_000), after(18_001), &completed());
        assert!(cooldowns.is_empty());
    }

    #[test]
    fn a_family_cools_alone() {
        let mut cooldowns = Cooldowns::default();
        let outcome = throttled(ThrottleKind::Model, Some(after(100)));
        let of = |model, sent, outcome| Heard {
            model: Some(model),
            dispatched_at: sent,
            outcome: Some(outcome),
        };
        cooldowns.hear(&of("claude-opus-4-8", NOW, &outcome), NOW, 0.0);
        assert_eq!(cooldowns.gate(Some("claude-sonnet-5"), NOW), Gate::Open);
        let shut = Gate::Shut(Some(after(100)));
        assert_eq!(cooldowns.gate(Some("opus"), NOW), shut);
        assert_eq!(
            cooldowns.gate(None, NOW),
            shut,
            "it may be the default model"
        );
        assert!(
            cooldowns.longest().is_none(),
            "the account as a whole is well"
        );
        let well = completed();
        cooldowns.hear(&of("claude-sonnet-5", after(100), &well), after(101), 0.0);
        assert_eq!(cooldowns.gate(Some("opus"), after(101)), Gate::HalfOpen);
        cooldowns.hear(&of("claude-opus-5", after(101), &well), after(102), 0.0);
        assert!(cooldowns.is_empty());
    }

    #[test]
    fn a_spend_cap_is_tried_each_hour_though_a_month_was_named() {
        let month = after(20 * 86_400);
        let cooldowns = cooling(ThrottleKind::SpendCap, Some(month));
        assert_eq!(cooldowns.gate(None, NOW), Gate::Shut(Some(after(3600))));
        assert_eq!(cooldowns.longest().unwrap().resets_at, Some(month));
    }

    #[test]
    fn an_old_refusal_does_not_shut_an_account_that_is_coming_back() {
        let mut cooldowns = cooling(ThrottleKind::Burst, Some(after(5)));
        hear(
            &mut cooldowns,
            NOW,
            after(6),
            &throttled(ThrottleKind::Burst, None),
        );
        assert_eq!(cooldowns.gate(None, after(6)), Gate::HalfOpen);
        let reset = throttled(ThrottleKind::Burst, Some(Time::EPOCH));
        let past = cooling(ThrottleKind::Burst, None);
        hear(&mut cooldowns, after(6), after(6), &reset);
        assert!(matches!(cooldowns.gate(None, after(6)), Gate::Shut(Some(end)) if end > after(6)));
        assert!(matches!(past.gate(None, NOW), Gate::Shut(Some(end)) if end > NOW));
    }
}
