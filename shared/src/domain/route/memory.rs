//! What the planner remembers from one plan to the next: whose turn it was, what the weighted
//! strategy owes, where sessions are at home. All of it is bounded, and losing it costs nothing
//! but a less even start.

use std::collections::HashMap;

use super::Seat;
use crate::domain::AccountId;

/// Sessions whose account is remembered, at least; at most twice as many.
const SESSIONS: usize = 20_000;

/// Accounts that are remembered. Beyond it all begin anew.
const ACCOUNTS: usize = 20_000;

/// Where the strategies left off.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    turn: u64,
    marks: HashMap<AccountId, Mark>,
    sessions: Sessions,
}

/// What is remembered of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The turn in which it was chosen last; 0 when it never was.
    pub turn: u64,
    /// Turns since then.
    pub rested: u64,
    /// What the weighted strategy owes it.
    pub credit: i64,
}

/// The last account of each session, in two generations: when the younger is full, it becomes the
/// older, and what was old and is not asked for is forgotten.
#[derive(Clone, Debug, Default)]
struct Sessions {
    young: HashMap<String, AccountId>,
    old: HashMap<String, AccountId>,
}

impl Cursor {
    /// Fills in what is remembered of each seat.
    pub fn recall(&self, seats: &mut [Seat]) {
        for seat in seats {
            let mark = self.marks.get(&seat.account).copied().unwrap_or_default();
            seat.mark = Mark {
                rested: self.turn.saturating_sub(mark.turn).saturating_add(1),
                ..mark
            };
        }
    }

    pub(super) fn keep(&mut self, seat: &Seat, turn: u64, credit: i64) {
        if (turn, credit) == (seat.mark.turn, seat.mark.credit) {
            return;
        }
        if self.marks.len() >= ACCOUNTS {
            self.marks.clear();
        }
        let mark = Mark {
            turn,
            rested: 0,
            credit,
        };
        self.marks.insert(seat.account.clone(), mark);
    }

    pub(super) fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// The account that a session ran on last.
    #[must_use]
    pub fn home(&self, session: &str) -> Option<AccountId> {
        let Sessions { young, old } = &self.sessions;
        young.get(session).or_else(|| old.get(session)).cloned()
    }

    /// A session runs on this account from now on.
    pub fn settle_in(&mut self, session: &str, account: &AccountId) {
        let Sessions { young, old } = &mut self.sessions;
        if let Some(known) = young.get_mut(session) {
            known.clone_from(account);
            return;
        }
        if young.len() >= SESSIONS {
            *old = std::mem::take(young);
        }
        young.insert(session.to_owned(), account.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_bounded_and_those_in_use_are_kept() {
        let account: AccountId = "a".parse().unwrap();
        let mut cursor = Cursor::default();
        for number in 0..SESSIONS * 5 {
            cursor.settle_in(&number.to_string(), &account);
            if cursor.home("0").is_some() {
                cursor.settle_in("0", &account);
            }
            let Sessions { young, old } = &cursor.sessions;
            assert!(young.len() + old.len() <= 2 * SESSIONS);
        }
        assert_eq!(cursor.home("0"), Some(account));
        assert_eq!(cursor.home("1"), None);
    }
}
