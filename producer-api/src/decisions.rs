//! What this process decided of late, for those who ask why. Kept in memory and bounded: a
//! decision costs the dispatcher an entry in a table, and nothing is written for it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use sluice_shared::domain::{
    AccountId, JobId, Lane, Time,
    route::{LaneSeats, Refusal, Seat},
};

use crate::store::Choice;

type Attempt = (JobId, u32);

/// Dispatches remembered, at most.
const MOST: usize = 20_000;

/// Accounts remembered over all rounds, at most.
const MOST_SEATS: usize = 100_000;

/// One round of the dispatcher.
#[derive(Debug, Default)]
pub struct Round {
    /// When it was.
    pub at: Time,
    /// The accounts that could be asked, as they were when the round began.
    pub seats: Vec<Seat>,
    /// The accounts that were out, and why.
    pub refused: Vec<(AccountId, Refusal)>,
    /// The lanes that it dispatched from, by their index.
    pub lanes: HashMap<usize, (Lane, LaneSeats)>,
}

/// How one dispatch came about.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The round that it belongs to.
    pub round: Arc<Round>,
    /// What was decided in it.
    pub choice: Choice,
}

/// The decisions of late; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    by_attempt: HashMap<Attempt, Decision>,
    rounds: VecDeque<(Arc<Round>, Vec<Attempt>)>,
    seats: usize,
}

impl Round {
    fn size(&self) -> usize {
        self.seats.len() + self.refused.len() + 1
    }
}

impl Decisions {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a round and what was decided in it, and forgets the oldest.
    pub fn note(&self, round: Round, decided: impl IntoIterator<Item = (Attempt, Choice)>) {
        let round = Arc::new(round);
        let mut attempts = Vec::new();
        let mut kept = self.kept();
        for (attempt, choice) in decided {
            let round = round.clone();
            kept.by_attempt.insert(attempt, Decision { round, choice });
            attempts.push(attempt);
        }
        kept.seats += round.size();
        kept.rounds.push_back((round, attempts));
        while kept.by_attempt.len() > MOST || kept.seats > MOST_SEATS {
            let Some((round, attempts)) = kept.rounds.pop_front() else {
                return;
            };
            kept.seats -= round.size();
            for attempt in attempts {
                kept.by_attempt.remove(&attempt);
            }
        }
    }

    /// How this attempt came about, if this process decided it of late.
    #[must_use]
    pub fn of(&self, job: JobId, attempt: u32) -> Option<Decision> {
        self.kept().by_attempt.get(&(job, attempt)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let decisions = Decisions::default();
        let choice = Choice {
            lane: 0,
            priority: 0,
            by_session: false,
        };
        let jobs: Vec<JobId> = (0..MOST + 100).map(|_| JobId::generate()).collect();
        for chunk in jobs.chunks(50) {
            let decided = chunk.iter().map(|job| ((*job, 1), choice));
            decisions.note(Round::default(), decided);
        }
        assert!(decisions.of(jobs[0], 1).is_none());
        assert!(decisions.of(jobs[MOST + 99], 1).is_some());
        assert!(decisions.of(jobs[MOST + 99], 2).is_none());
        assert!(decisions.kept().by_attempt.len() <= MOST);
    }
}
