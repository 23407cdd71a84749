//! Windows: how much an account may be used within any interval of a given length.
//!
//! **Invariant.** However a window of the limit's length is laid over the calls as their provider
//! sees them, it holds at most the limit.
//!
//! The truth plane does not see calls, it hears of them. So a charge counts without end from its
//! dispatch until something says when the call reached its provider at the latest, and from there
//! for one more window; then, and not before, its share is free again. What has landed is kept in
//! sub-windows of a two-hundredth of the window, and a sub-window counts until its last instant is
//! one window ago: that costs at most half a percent of the limit and keeps the state small.
//!
//! Pure: which time it is, is a parameter. [`Ledger`](super::ledger::Ledger) puts windows together
//! for an account.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Span, Time, Usage};

/// Sub-windows that a window is cut into.
const SUB_WINDOWS: u64 = 200;

/// What is counted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Calls of the provider.
    Requests,
    /// Tokens read.
    InputTokens,
    /// Tokens written.
    OutputTokens,
    /// Money, in millionths of a US dollar.
    Cost,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [
        Kind::Requests,
        Kind::InputTokens,
        Kind::OutputTokens,
        Kind::Cost,
    ];

    /// The name kept in the truth plane.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Cost => "cost",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// An amount of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts([u64; Kind::ALL.len()]);

impl Amounts {
    /// One call, and nothing known of its tokens and its cost.
    pub const ONE_REQUEST: Amounts = Amounts([1, 0, 0, 0]);

    /// The amount of `kind`.
    #[must_use]
    pub fn get(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// The same with another amount of `kind`.
    #[must_use]
    pub fn with(mut self, kind: Kind, amount: u64) -> Self {
        self.0[kind as usize] = amount;
        self
    }

    /// The smaller of both, of each kind.
    #[must_use]
    pub fn least(self, other: Amounts) -> Amounts {
        Kind::ALL.into_iter().fold(self, |least, kind| {
            least.with(kind, least.get(kind).min(other.get(kind)))
        })
    }
}

/// At most so much of a kind within any interval of a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limit {
    /// What is counted.
    pub kind: Kind,
    /// How much at most; cost in millionths of a US dollar.
    pub most: u64,
    /// The length of the interval.
    pub window: Span,
}

/// What a job will use, as far as it is known before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Tokens that it will be read as, by the length of its text.
    pub input_tokens: u64,
    /// Tokens that it may write at most, when it says so.
    pub output_tokens: Option<u64>,
}

impl Needs {
    /// The needs of a request of `bytes` bytes in all: about four to a token.
    #[must_use]
    pub fn of(bytes: usize, max_tokens: Option<u64>) -> Self {
        Self {
            input_tokens: u64::try_from(bytes.div_ceil(4)).unwrap_or(u64::MAX),
            output_tokens: max_tokens,
        }
    }
}

/// How far an account's use is known to have gone, for one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What is counted.
    pub kind: Kind,
    /// The length of the interval.
    pub length: Span,
    /// Charges of which it is not known that they have reached their provider.
    held: u64,
    /// What has landed, by sub-window, ascending.
    landed: Vec<(i64, u64)>,
    /// What a job used on average lately; `None` before the first.
    mean: Option<u64>,
}

impl Window {
    /// An unused window.
    #[must_use]
    pub fn new(kind: Kind, length: Span) -> Self {
        Self {
            kind,
            length,
            held: 0,
            landed: Vec::new(),
            mean: None,
        }
    }

    /// A window as it was kept: see [`Window::pack`].
    #[must_use]
    pub fn unpack(kind: Kind, length: Span, held: u64, packed: &[i64], mean: Option<u64>) -> Self {
        let mut landed = Vec::with_capacity(packed.len() / 2);
        let mut index = 0;
        for pair in packed.chunks_exact(2) {
            index += pair[0];
            landed.push((index, u64::try_from(pair[1]).unwrap_or(0)));
        }
        Self {
            kind,
            length,
            held,
            landed,
            mean,
        }
    }

    /// What has landed, to be kept: pairs of a step from one sub-window to the next and an amount.
    #[must_use]
    pub fn pack(&self) -> Vec<i64> {
        let mut packed = Vec::with_capacity(self.landed.len() * 2);
        let mut before = 0;
        for (index, amount) in &self.landed {
            packed.extend([index - before, i64::try_from(*amount).unwrap_or(i64::MAX)]);
            before = *index;
        }
        packed
    }

    /// Charges of which it is not known that they have reached their provider.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// What a job used on average lately.
    #[must_use]
    pub fn mean(&self) -> Option<u64> {
        self.mean
    }

    /// Nothing counts, now or later.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held == 0 && self.landed.is_empty()
    }

    fn grain(&self) -> i64 {
        let length = u64::try_from(self.length.as_millis()).unwrap_or(u64::MAX);
        i64::try_from(length.div_ceil(SUB_WINDOWS)).map_or(i64::MAX, |grain| grain.max(1))
    }

    /// When the sub-window has ceased to count.
    fn end(&self, index: i64) -> Time {
        let last = index.saturating_add(1).saturating_mul(self.grain());
        Time::from_millis(last.saturating_add(self.length.as_millis()))
    }

    /// How long after its start a call is taken to reach its provider at the latest, if it was
    /// not answered sooner.
    #[must_use]
    pub fn transit(&self) -> Duration {
        (self.length.0 / 25).clamp(Duration::from_millis(100), Duration::from_secs(2))
    }

    /// Counts `amount` without end.
    pub fn hold(&mut self, amount: u64) {
        self.held = self.held.saturating_add(amount);
    }

    /// Ends what [`Window::hold`] began.
    pub fn release(&mut self, amount: u64) {
        self.held = self.held.saturating_sub(amount);
    }

    /// Counts `amount` of a call that reached its provider at `arrived_by` at the latest.
    pub fn land(&mut self, arrived_by: Time, amount: u64) {
        let index = arrived_by.as_millis().div_euclid(self.grain());
        match self
            .landed
            .binary_search_by_key(&index, |(index, _)| *index)
        {
            Ok(place) => self.landed[place].1 = self.landed[place].1.saturating_add(amount),
            Err(place) if amount > 0 => self.landed.insert(place, (index, amount)),
            Err(_) => {}
        }
    }

    /// Takes back what [`Window::land`] counted.
    pub fn lift(&mut self, arrived_by: Time, amount: u64) {
        let index = arrived_by.as_millis().div_euclid(self.grain());
        if let Ok(place) = self
            .landed
            .binary_search_by_key(&index, |(index, _)| *index)
        {
            self.landed[place].1 = self.landed[place].1.saturating_sub(amount);
            if self.landed[place].1 == 0 {
                self.landed.remove(place);
            }
        }
    }

    /// Drops what has ceased to count.
    pub fn forget(&mut self, now: Time) {
        let ended = self
            .landed
            .partition_point(|(index, _)| self.end(*index) <= now);
        self.landed.drain(..ended);
    }

    /// One more job has used `amount`.
    pub fn learn(&mut self, amount: u64) {
        self.mean = Some(match self.mean {
            None => amount,
            Some(mean) if amount >= mean => mean + (amount - mean).div_ceil(8),
            Some(mean) => mean - (mean - amount) / 8,
        });
    }

    /// What has landed and counts at `now`.
    #[must_use]
    pub fn used(&self, now: Time) -> u64 {
        self.landed
            .iter()
            .filter(|(index, _)| self.end(*index) > now)
            .fold(0, |sum: u64, (_, amount)| sum.saturating_add(*amount))
    }

    /// How much more may be charged at `now`, of `most`.
    #[must_use]
    pub fn room(&self, most: u64, now: Time) -> u64 {
        most.saturating_sub(self.used(now).saturating_add(self.held))
    }

    /// When `amount` fits, if nothing else is charged meanwhile: `now` when it does already,
    /// `None` when that takes the news of a call under way.
    #[must_use]
    pub fn room_at(&self, most: u64, amount: u64, now: Time) -> Option<Time> {
        let amount = amount.min(most);
        let mut counted = self.used(now).saturating_add(self.held);
        if most.saturating_sub(counted) >= amount {
            return Some(now);
        }
        for (index, landed) in &self.landed {
            let end = self.end(*index);
            if end <= now {
                continue;
            }
            counted = counted.saturating_sub(*landed);
            if most.saturating_sub(counted) >= amount {
                return Some(end);
            }
        }
        None
    }

    /// What counts at `now`, each amount with the time at which it ceases to, earliest first. What
    /// is held is taken to land now.
    pub fn leaving(&self, now: Time) -> impl Iterator<Item = (Time, u64)> {
        let landed = self.landed.iter();
        let landed = landed.map(|(index, amount)| (self.end(*index), *amount));
        let held = (self.held > 0).then_some((now + self.length.0, self.held));
        landed.filter(move |(end, _)| *end > now).chain(held)
    }

    /// When all of it is free again, if nothing else is charged meanwhile: one window from now at
    /// the latest, as far as anyone knows.
    #[must_use]
    pub fn full_again(&self, now: Time) -> Time {
        let last = self.leaving(now).map(|(end, _)| end).max();
        last.unwrap_or(now + self.length.0)
    }

    /// What a job is taken to use when nothing better is known: a quarter more than the mean, and
    /// before there is one a tenth of the limit.
    #[must_use]
    pub fn typical(&self, most: u64) -> u64 {
        match self.mean {
            Some(mean) => mean.saturating_add(mean / 4).max(1),
            None => (most / 10).max(1),
        }
    }
}

/// What is left of an account's limits at one moment, for a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowance(Vec<Left>);

/// What is left of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// What is counted.
    pub kind: Kind,
    /// How much at most.
    pub most: u64,
    /// How much more now.
    pub left: u64,
    /// What a job is taken to use that does not say.
    pub typical: u64,
}

impl Allowance {
    /// Of these limits so much is left.
    #[must_use]
    pub fn new(left: Vec<Left>) -> Self {
        Self(left)
    }

    /// `left` of at most `most` jobs, whatever they need.
    #[must_use]
    pub fn of_jobs(most: u32, left: u32) -> Self {
        Self(vec![Left {
            kind: Kind::Requests,
            most: most.max(1).into(),
            left: left.into(),
            typical: 1,
        }])
    }

    /// Calls that are surely too many: there is room for less than this many jobs.
    #[must_use]
    pub fn jobs(&self) -> u32 {
        let jobs = self.0.iter().map(|left| match left.kind {
            Kind::Requests => left.left,
            _ if left.left == 0 => 0,
            _ => u64::MAX,
        });
        jobs.min()
            .map_or(u32::MAX, |jobs| u32::try_from(jobs).unwrap_or(u32::MAX))
    }

    /// The smallest share that is left of any limit, from 0 to 1; 1 without limits.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share needs no more")]
    pub fn headroom(&self) -> f64 {
        self.0
            .iter()
            .map(|left| left.left as f64 / left.most.max(1) as f64)
            .fold(1.0, f64::min)
    }

    /// What a job with these needs is charged here.
    #[must_use]
    pub fn charge(&self, needs: &Needs) -> Amounts {
        let typical = |kind| {
            let all = self.0.iter().filter(|left| left.kind == kind);
            all.map(|left| left.typical).max().unwrap_or(0)
        };
        let output = needs
            .output_tokens
            .unwrap_or_else(|| typical(Kind::OutputTokens));
        Amounts::ONE_REQUEST
            .with(Kind::InputTokens, needs.input_tokens)
            .with(Kind::OutputTokens, output)
            .with(Kind::Cost, typical(Kind::Cost))
    }

    /// Whether there is room for a job. One that needs more than a limit ever allows fits when
    /// nothing else counts against it: else it would wait for ever.
    #[must_use]
    pub fn fits(&self, needs: &Needs) -> bool {
        let charge = self.charge(needs);
        self.0
            .iter()
            .all(|left| charge.get(left.kind).min(left.most) <= left.left)
    }

    /// Takes what a job is charged.
    pub fn take(&mut self, needs: &Needs) {
        let charge = self.charge(needs);
        for left in &mut self.0 {
            left.left = left.left.saturating_sub(charge.get(left.kind));
        }
    }
}

impl Usage {
    /// What a call has used, as far as it is known: the provider may not tell its cost.
    #[must_use]
    pub fn known(&self, estimate: &Amounts) -> Amounts {
        let cost = self
            .cost_microusd
            .unwrap_or_else(|| estimate.get(Kind::Cost));
        Amounts::ONE_REQUEST
            .with(Kind::InputTokens, self.input_tokens)
            .with(Kind::OutputTokens, self.output_tokens)
            .with(Kind::Cost, cost)
    }
}

#[cfg(test)]
mod tests;
