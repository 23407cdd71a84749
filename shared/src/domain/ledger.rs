//! An account's windows together, and what becomes of a charge.
//!
//! A charge goes one way: held at the dispatch, landed when its call is heard of, reconciled when
//! it has ended. Every step that is heard of late or not at all leaves it counting longer, never
//! shorter. Pure, as [`window`](super::window) is; the store keeps what is in here in the
//! transactions that bind and settle attempts.

use std::time::Duration;

use super::{
    Time,
    window::{Allowance, Amounts, Kind, Left, Limit, Window},
};

/// The present, as far as it is known: clocks differ and jump, but it lies between these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// It is not earlier; what is judged to be over is judged by this.
    pub earliest: Time,
    /// It is not later; what is said to be heard now is written by this.
    pub latest: Time,
}

impl Present {
    /// The present by a clock that is trusted.
    #[must_use]
    pub fn exactly(now: Time) -> Self {
        Self {
            earliest: now,
            latest: now,
        }
    }
}

/// What one attempt is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// How much.
    pub amounts: Amounts,
    /// When it was dispatched.
    pub dispatched_at: Time,
    /// When its provider was called at the latest; `None` as long as that is not known.
    pub started_by: Option<Time>,
}

/// How an attempt's end tells of its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// There was none.
    Never,
    /// It took this long in all, and has just been heard to be over.
    Took(Duration),
    /// Nobody knows: it may be as late as now.
    Unknown,
}

/// An account's windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    windows: Vec<Window>,
}

impl Ledger {
    /// These windows.
    #[must_use]
    pub fn new(windows: Vec<Window>) -> Self {
        Self { windows }
    }

    /// Every window.
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The window of a limit.
    #[must_use]
    pub fn window(&self, limit: &Limit) -> Option<&Window> {
        self.windows
            .iter()
            .find(|window| window.kind == limit.kind && window.length == limit.window)
    }

    /// The limits that have no window yet.
    pub fn missing<'a>(&self, limits: &'a [Limit]) -> impl Iterator<Item = &'a Limit> {
        limits.iter().filter(|limit| self.window(limit).is_none())
    }

    /// A new window, in which the charges that are open count from its beginning.
    pub fn open(&mut self, limit: &Limit, open: &[Charge]) {
        let mut window = Window::new(limit.kind, limit.window);
        for charge in open {
            let amount = charge.amounts.get(limit.kind);
            match charge.started_by {
                None => window.hold(amount),
                Some(started_by) => window.land(started_by + window.transit(), amount),
            }
        }
        self.windows.push(window);
    }

    /// What is left of these limits.
    #[must_use]
    pub fn allowance(&self, limits: &[Limit], now: Present) -> Allowance {
        let left = limits.iter().map(|limit| {
            let window = self.window(limit);
            Left {
                kind: limit.kind,
                most: limit.most,
                // A limit whose window is not open yet allows nothing.
                left: window.map_or(0, |window| window.room(limit.most, now.earliest)),
                typical: window.map_or(limit.most, |window| window.typical(limit.most)),
            }
        });
        Allowance::new(left.collect())
    }

    /// When a job that is charged `amounts` fits, if it does not now; `None` when it does, or when
    /// that takes the news of a call.
    #[must_use]
    pub fn room_at(&self, limits: &[Limit], amounts: &Amounts, now: Present) -> Option<Time> {
        let mut latest = now.earliest;
        for limit in limits {
            let window = self.window(limit)?;
            latest =
                latest.max(window.room_at(limit.most, amounts.get(limit.kind), now.earliest)?);
        }
        (latest > now.earliest).then_some(latest)
    }

    /// An attempt is dispatched.
    pub fn charge(&mut self, amounts: Amounts, now: Present) -> Charge {
        for window in &mut self.windows {
            window.forget(now.earliest);
            window.hold(amounts.get(window.kind));
        }
        Charge {
            amounts,
            dispatched_at: now.earliest,
            started_by: None,
        }
    }

    /// It is heard that the provider is called: it was so `ahead` from now at the latest.
    pub fn started(&mut self, charge: &mut Charge, ahead: Duration, now: Present) {
        if charge.started_by.is_some() {
            return;
        }
        let started_by = now.latest + ahead;
        for window in &mut self.windows {
            let amount = charge.amounts.get(window.kind);
            window.release(amount);
            window.land(started_by + window.transit(), amount);
        }
        charge.started_by = Some(started_by);
    }

    /// The attempt has ended: what it was charged makes way for what it really used, if that is
    /// known.
    pub fn ended(&mut self, charge: Charge, call: Call, used: Option<Amounts>, now: Present) {
        // By the length of the call and not by the clock of whoever made it, which may be wrong.
        let (started_by, took) = match call {
            Call::Never => (None, None),
            Call::Took(took) => {
                let started_by = (now.latest - took).max(charge.dispatched_at);
                (Some(started_by), Some(took))
            }
            Call::Unknown => (charge.started_by.or(Some(now.latest)), None),
        };
        for window in &mut self.windows {
            let charged = charge.amounts.get(window.kind);
            let before = charge.started_by.map(|start| start + window.transit());
            match before {
                None => window.release(charged),
                Some(arrived_by) => window.lift(arrived_by, charged),
            }
            let Some(started_by) = started_by else {
                continue;
            };
            let way = took.map_or(window.transit(), |took| took.min(window.transit()));
            let arrived_by = started_by + way;
            // Both are true, so that the earlier one holds.
            let arrived_by = before.map_or(arrived_by, |before| before.min(arrived_by));
            let used = used.map_or(charged, |used| used.get(window.kind));
            window.land(arrived_by, used);
            window.forget(now.earliest);
        }
    }

    /// A job has used so much, as its provider says.
    pub fn learn(&mut self, used: &Amounts) {
        for window in &mut self.windows {
            if window.kind != Kind::Requests {
                window.learn(used.get(window.kind));
            }
        }
    }

    /// Counts held charges anew. Whether a count was wrong.
    pub fn recount(&mut self, open: &[Charge]) -> bool {
        let mut wrong = false;
        for window in &mut self.windows {
            let unheard = open.iter().filter(|charge| charge.started_by.is_none());
            let held = unheard.fold(0, |sum: u64, charge| {
                sum.saturating_add(charge.amounts.get(window.kind))
            });
            if held != window.held() {
                wrong = true;
                window.release(u64::MAX);
                window.hold(held);
            }
        }
        wrong
    }

    /// Drops windows that nobody asks for and that count nothing. Gives them.
    pub fn prune(&mut self, limits: &[Limit]) -> Vec<Window> {
        let wanted = |window: &Window| {
            !window.is_empty()
                || limits
                    .iter()
                    .any(|limit| window.kind == limit.kind && window.length == limit.window)
        };
        let (kept, dropped) = std::mem::take(&mut self.windows)
            .into_iter()
            .partition(wanted);
        self.windows = kept;
        dropped
    }
}

/// Holds a clock that may jump against one that never does and that tells no date.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steady {
    /// What the one said when the other said this.
    anchor: Option<(Time, Duration)>,
    /// When the jump was noticed, by the clock that never jumps, and where it led in milliseconds.
    jumped: Option<(Duration, i64)>,
    /// After a jump and back: until when, by the clock that never jumps, others may still have
    /// dated something by the clock as it was meanwhile, and how far that was off in milliseconds.
    doubt: Option<(Duration, i64)>,
    /// The longest window that was ever asked about.
    longest: Duration,
}

/// What a clock may be set right by at once without that being a jump. It must cover what the
/// two clocks are read apart.
const DRIFT: i64 = 100;

impl Steady {
    /// The present by `reading`, which was taken between the two moments of `uptime`. After a
    /// jump both the old time and the new one may be right, for as long as anything counts that is
    /// older than the jump: that is for `longest`, the longest window of interest.
    pub fn present(
        &mut self,
        reading: Time,
        uptime: (Duration, Duration),
        longest: Duration,
    ) -> Present {
        self.longest = self.longest.max(longest);
        let (before, after) = uptime;
        // A reading that took long is no measure for others.
        let is_sharp = after.saturating_sub(before).as_millis() <= DRIFT.unsigned_abs().into();
        let Some((time, then)) = self.anchor else {
            self.anchor = is_sharp.then_some((reading, before));
            return Present::exactly(reading);
        };
        let least = time + before.saturating_sub(then);
        let most = time + after.saturating_sub(then);
        let off = if reading < least {
            reading.as_millis().saturating_sub(least.as_millis())
        } else {
            reading.as_millis().saturating_sub(most.as_millis()).max(0)
        };
        if off.abs() <= DRIFT {
            // Slow corrections are followed.
            if is_sharp {
                self.anchor = Some((reading, before));
            }
            if let Some((_, known)) = self.jumped.take() {
                let far = known.abs().max(self.doubt.map_or(0, |(_, far)| far));
                let until = after + self.longest + Duration::from_millis(far.unsigned_abs());
                self.doubt = Some((until, far));
            }
            return self.doubted(reading, after);
        }
        let since = match self.jumped {
            Some((since, known)) if known.abs_diff(off) <= DRIFT.unsigned_abs() => since,
            _ => after,
        };
        self.jumped = Some((since, off));
        let far = Duration::from_millis(off.unsigned_abs());
        if after.saturating_sub(since) > self.longest.saturating_add(far) {
            self.anchor = is_sharp.then_some((reading, before));
            self.jumped = None;
            return Present::exactly(reading);
        }
        let doubted = self.doubted(reading, after);
        Present {
            earliest: doubted.earliest.min(least),
            latest: doubted.latest.max(most),
        }
    }

    fn doubted(&self, reading: Time, uptime: Duration) -> Present {
        match self.doubt {
            Some((until, far)) if uptime < until => {
                let far = Duration::from_millis(far.unsigned_abs());
                Present {
                    earliest: reading - far,
                    latest: reading + far,
                }
            }
            _ => Present::exactly(reading),
        }
    }
}

#[cfg(test)]
mod tests;
