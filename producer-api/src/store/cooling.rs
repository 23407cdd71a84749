//! Keeping cooldowns: what attempts come to decides whether their accounts cool, and one canary
//! is let through at the end. What follows from what is `domain::cooldown`'s.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};
use sluice_shared::domain::{
    AccountId, Cooldowns, Gate, Heard, Outcome, Standing, Time, route::Binding,
};

use super::{Store, StoreError, entity::account_state, parse_json, to_json};

/// An attempt that has left its account.
pub(super) struct Left<'a> {
    pub(super) model: Option<String>,
    pub(super) dispatched_at: Time,
    pub(super) outcome: Option<&'a Outcome>,
}

/// The cooldowns of an account.
pub(super) fn read(state: &account_state::Model) -> Result<Cooldowns, StoreError> {
    state
        .cooldowns
        .as_deref()
        .map_or(Ok(Cooldowns::default()), |text| {
            parse_json("cooldowns", text)
        })
}

/// Drops the bindings that must wait for a canary, and notes the canaries. `model` is what a
/// binding's job asks for. Gives the seats whose cooldowns are to be written.
pub(super) fn let_through<'a>(
    bindings: &mut Vec<Binding>,
    cooldowns: &mut [Cooldowns],
    model: impl Fn(&Binding) -> Option<&'a str>,
    now: Time,
) -> BTreeSet<usize> {
    let mut probed = BTreeSet::new();
    bindings.retain(|binding| {
        let cooldowns = &mut cooldowns[binding.seat];
        match cooldowns.gate(model(binding), now) {
            Gate::Open => true,
            Gate::HalfOpen => {
                cooldowns.probe(model(binding));
                probed.insert(binding.seat);
                true
            }
            Gate::Shut(_) => false,
        }
    });
    probed
}

/// Writes an account's cooldowns, with the columns that sum them up.
pub(super) async fn write(
    tx: &DatabaseTransaction,
    account: &AccountId,
    cooldowns: &Cooldowns,
) -> Result<(), StoreError> {
    let text = if cooldowns.is_empty() {
        None
    } else {
        Some(to_json("cooldowns", cooldowns)?)
    };
    let longest = cooldowns.longest();
    let streak = cooldowns.iter().map(|cooldown| cooldown.streak).max();
    account_state::Entity::update_many()
        .col_expr(account_state::Column::Cooldowns, text.into())
        .col_expr(
            account_state::Column::CooldownUntil,
            longest.map(|cooldown| cooldown.until.as_millis()).into(),
        )
        .col_expr(
            account_state::Column::ThrottleStreak,
            i64::from(streak.unwrap_or(0)).into(),
        )
        .filter(account_state::Column::Account.eq(account.as_str()))
        .exec(tx)
        .await?;
    Ok(())
}

/// Lets attempts change their accounts' standing and cooldowns; most change nothing. Gives the
/// accounts whose cooldown has changed, with its end. The accounts are locked; those in `cooling`
/// have cooldowns.
pub(super) async fn judge(
    tx: &DatabaseTransaction,
    judged: &BTreeMap<String, Vec<Left<'_>>>,
    cooling: &BTreeSet<String>,
    now: Time,
    chance: fn() -> f64,
) -> Result<Vec<(AccountId, Option<Time>)>, StoreError> {
    let is_of_note = |left: &Left<'_>| {
        matches!(
            left.outcome,
            Some(
                Outcome::Throttled { .. }
                    | Outcome::Overloaded { .. }
                    | Outcome::AuthFailed { .. }
                    | Outcome::OutOfCredit { .. }
            )
        )
    };
    let names: Vec<&str> = judged
        .iter()
        .filter(|(account, left)| cooling.contains(*account) || left.iter().any(is_of_note))
        .map(|(account, _)| account.as_str())
        .collect();
    let mut changed = Vec::new();
    if names.is_empty() {
        return Ok(changed);
    }
    let states = account_state::Entity::find()
        .filter(account_state::Column::Account.is_in(names))
        .order_by_asc(account_state::Column::Account)
        .all(tx)
        .await?;
    for state in states {
        let Ok(account) = state.account.parse::<AccountId>() else {
            continue;
        };
        let (was_standing, was) = (Standing::from_name(&state.standing), read(&state)?);
        let (mut standing, mut cooldowns) = (was_standing, was.clone());
        let mut reason = state.reason.clone();
        for left in judged.get(&state.account).into_iter().flatten() {
            let heard = Heard {
                model: left.model.as_deref(),
                dispatched_at: left.dispatched_at,
                outcome: left.outcome,
            };
            cooldowns.hear(&heard, now, chance());
            if let Some(outcome) = left.outcome {
                let next = standing.after(outcome);
                if next != standing {
                    reason = outcome.error().map(|(_, detail)| detail.to_owned());
                }
                standing = next;
            }
        }
        if cooldowns != was {
            write(tx, &account, &cooldowns).await?;
            if standing == Standing::Active {
                reason = cooldowns.longest().map(|cooldown| cooldown.reason.clone());
            }
        }
        if standing != was_standing || reason != state.reason {
            account_state::Entity::update_many()
                .col_expr(account_state::Column::Standing, standing.as_str().into())
                .col_expr(account_state::Column::Reason, reason.into())
                .filter(account_state::Column::Account.eq(&state.account))
                .exec(tx)
                .await?;
        }
        let end = |cooldowns: &Cooldowns| cooldowns.longest().map(|cooldown| cooldown.until);
        if standing != was_standing {
            // Nobody knows for how long; the worker asks no more than that.
            changed.push((account, Some(now + OUT)));
        } else if end(&cooldowns) != end(&was) {
            changed.push((account, end(&cooldowns)));
        }
    }
    Ok(changed)
}

impl Store {
    /// Lets accounts cool for a refusal that another one heard. Gives those whose cooldown has
    /// changed, with its end.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn cool(
        &self,
        accounts: &[AccountId],
        outcome: &Outcome,
        now: Time,
        chance: fn() -> f64,
    ) -> Result<Vec<(AccountId, Option<Time>)>, StoreError> {
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let tx = self.begin().await?;
        let names = accounts.iter().map(AccountId::as_str);
        account_state::Entity::find()
            .filter(account_state::Column::Account.is_in(names))
            .order_by_asc(account_state::Column::Account)
            .lock_exclusive()
            .all(&tx)
            .await?;
        let heard = || Left {
            model: None,
            dispatched_at: now,
            outcome: Some(outcome),
        };
        let judged = accounts
            .iter()
            .map(|account| (account.to_string(), vec![heard()]))
            .collect();
        let changed = judge(&tx, &judged, &BTreeSet::new(), now, chance).await?;
        tx.commit().await?;
        Ok(changed)
    }
}

/// How long workers give back what is still on its way to an account that is out.
const OUT: std::time::Duration = std::time::Duration::from_secs(60);
