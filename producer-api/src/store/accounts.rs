//! Accounts: what is configured, and what has become of them.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait,
    QueryFilter, QueryOrder, QuerySelect, QueryTrait, Statement, sea_query::OnConflict,
};
use sluice_shared::domain::{Account, AccountId, Cooldowns, Ledger, Limit, Standing, Time};

use super::{
    Store, StoreError, cooling, count,
    definitions::{DefinitionRow, definition, next_revision},
    entity::{account, account_definition, account_state},
    limits::rows::ledgers,
    parse_json, to_json,
};

/// Why an account that was removed takes no jobs.
pub(super) const REMOVED: &str = "removed";

/// An account as it is now.
#[derive(Clone, Debug)]
pub struct AccountRow {
    /// What is fixed about it.
    pub account: Account,
    /// Whether it may take jobs at all.
    pub standing: Standing,
    /// Attempts in flight.
    pub in_flight: u32,
    /// No new job before this time.
    pub cooldown_until: Option<Time>,
    /// Why it cools or is out.
    pub reason: Option<String>,
    /// Each cause for which it cools.
    pub cooldowns: Cooldowns,
    /// How far its limits are used.
    pub ledger: Ledger,
    /// How it was made, if that was at run time and not by the configuration.
    pub definition: Option<DefinitionRow>,
}

impl Store {
    /// Makes the stored accounts those of the configuration, besides those made at run time. One
    /// that is gone from it is marked removed: it takes no new jobs, and its history stays.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn sync_accounts(&self, accounts: &[Account]) -> Result<(), StoreError> {
        let tx = self.begin().await?;
        // No change of ours, but others must look again all the same.
        next_revision(&tx, Time::EPOCH).await?;
        for account in accounts {
            put_account(&tx, account).await?;
            let taken_over = account_definition::Entity::delete_by_id(account.id.as_str())
                .exec(&tx)
                .await?;
            if taken_over.rows_affected > 0 {
                tracing::warn!(
                    account = %account.id,
                    "this account was made at run time; the one of the configuration takes its place"
                );
            }
        }
        let names: Vec<&str> = accounts.iter().map(|account| account.id.as_str()).collect();
        let made_at_run_time = account_definition::Entity::find()
            .select_only()
            .column(account_definition::Column::Account)
            .into_query();
        account::Entity::update_many()
            .col_expr(account::Column::Removed, true.into())
            .filter(account::Column::Id.is_not_in(names))
            .filter(account::Column::Id.not_in_subquery(made_at_run_time))
            .exec(&tx)
            .await?;
        self.forget_unlimited(&tx, accounts).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Every account that is there, by name.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn accounts(&self) -> Result<Vec<AccountRow>, StoreError> {
        let mut states: BTreeMap<String, account_state::Model> = account_state::Entity::find()
            .all(&self.read)
            .await?
            .into_iter()
            .map(|state| (state.account.clone(), state))
            .collect();
        let mut definitions: BTreeMap<String, account_definition::Model> =
            account_definition::Entity::find()
                .all(&self.read)
                .await?
                .into_iter()
                .map(|row| (row.account.clone(), row))
                .collect();
        let rows = account::Entity::find()
            .filter(account::Column::Removed.eq(false))
            .order_by_asc(account::Column::Id)
            .all(&self.read)
            .await?;
        let mut accounts = Vec::with_capacity(rows.len());
        for row in rows {
            let state = states.remove(&row.id);
            let definition = definitions.remove(&row.id).map(definition).transpose()?;
            let id: AccountId = row
                .id
                .parse()
                .map_err(|error| StoreError::Internal(format!("accounts: {error}")))?;
            accounts.push(AccountRow {
                account: Account {
                    id,
                    provider: row.provider,
                    // Only the configuration knows it.
                    endpoint: String::new(),
                    models: parse_json("models", &row.models)?,
                    tags: parse_json("tags", &row.tags)?,
                    max_concurrency: count(row.max_concurrency),
                    weight: count(row.weight),
                    limits: parse_json("limits", &row.limits)?,
                },
                standing: state.as_ref().map_or(Standing::Active, |state| {
                    Standing::from_name(&state.standing)
                }),
                in_flight: state.as_ref().map_or(0, |state| count(state.in_flight)),
                cooldown_until: state
                    .as_ref()
                    .and_then(|state| state.cooldown_until.map(Time::from_millis)),
                cooldowns: state
                    .as_ref()
                    .map_or(Ok(Cooldowns::default()), cooling::read)?,
                ledger: Ledger::default(),
                reason: state.and_then(|state| state.reason),
                definition,
            });
        }
        let limited = accounts.iter().map(|row| &row.account);
        let limited: Vec<String> = limited
            .filter(|account| !account.limits.is_empty())
            .map(|account| account.id.to_string())
            .collect();
        if limited.is_empty() {
            return Ok(accounts);
        }
        let mut ledgers = ledgers(&self.read, limited).await?;
        for row in &mut accounts {
            row.ledger = ledgers.remove(row.account.id.as_str()).unwrap_or_default();
            let unused: Vec<Limit> = row.ledger.missing(&row.account.limits).copied().collect();
            for limit in unused {
                row.ledger.open(&limit, &[]);
            }
        }
        Ok(accounts)
    }

    /// Sets an account's standing, by someone's wish. Back to active also ends its cooldown.
    /// Whether there is such an account.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn set_standing(
        &self,
        account: &AccountId,
        standing: Standing,
        reason: Option<String>,
    ) -> Result<bool, StoreError> {
        let mut update = account_state::Entity::update_many()
            .col_expr(account_state::Column::Standing, standing.as_str().into())
            .col_expr(account_state::Column::Reason, reason.into());
        if standing == Standing::Active {
            update = update
                .col_expr(
                    account_state::Column::CooldownUntil,
                    Option::<i64>::None.into(),
                )
                .col_expr(account_state::Column::ThrottleStreak, 0_i64.into())
                .col_expr(
                    account_state::Column::Cooldowns,
                    Option::<String>::None.into(),
                );
        }
        let changed = update
            .filter(account_state::Column::Account.eq(account.as_str()))
            .exec(&self.write)
            .await?;
        Ok(changed.rows_affected > 0)
    }

    /// Counts each account's slots anew and mends a count that is wrong. Gives what was wrong: a
    /// finding is a fault of ours, and this keeps it from costing a slot for ever.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn audit_slots(&self) -> Result<Vec<(String, i64, i64)>, StoreError> {
        let mut wrong = Vec::new();
        for state in account_state::Entity::find().all(&self.read).await? {
            let tx = self.begin().await?;
            let lock = if tx.get_database_backend() == DbBackend::Postgres {
                "FOR UPDATE"
            } else {
                ""
            };
            let read = |sql: String| {
                Statement::from_sql_and_values(
                    tx.get_database_backend(),
                    sql,
                    [state.account.clone().into()],
                )
            };
            let counted = tx
                .query_one_raw(read(format!(
                    "SELECT in_flight FROM account_state WHERE account = $1 {lock}"
                )))
                .await?;
            let real = tx
                .query_one_raw(read(
                    "SELECT count(*) FROM jobs WHERE account = $1 \
                     AND state IN ('dispatched', 'running')"
                        .into(),
                ))
                .await?;
            let (Some(counted), Some(real)) = (counted, real) else {
                continue;
            };
            let (counted, real): (i64, i64) =
                (counted.try_get_by_index(0)?, real.try_get_by_index(0)?);
            if counted != real {
                account_state::Entity::update_many()
                    .col_expr(account_state::Column::InFlight, real.into())
                    .filter(account_state::Column::Account.eq(&state.account))
                    .exec(&tx)
                    .await?;
                wrong.push((state.account.clone(), counted, real));
            }
            tx.commit().await?;
        }
        Ok(wrong)
    }
}

/// Keeps what is fixed about an account, and makes its state when there is none.
pub(super) async fn put_account(
    tx: &DatabaseTransaction,
    account: &Account,
) -> Result<(), StoreError> {
    account::Entity::insert(account::ActiveModel {
        id: Set(account.id.to_string()),
        provider: Set(account.provider.clone()),
        models: Set(to_json("models", &account.models)?),
        tags: Set(to_json("tags", &account.tags)?),
        max_concurrency: Set(account.max_concurrency.into()),
        weight: Set(account.weight.into()),
        limits: Set(to_json("limits", &account.limits)?),
        removed: Set(false),
    })
    .on_conflict(
        OnConflict::column(account::Column::Id)
            .update_columns([
                account::Column::Provider,
                account::Column::Models,
                account::Column::Tags,
                account::Column::MaxConcurrency,
                account::Column::Weight,
                account::Column::Limits,
                account::Column::Removed,
            ])
            .to_owned(),
    )
    .exec_without_returning(tx)
    .await?;
    account_state::Entity::insert(account_state::ActiveModel {
        account: Set(account.id.to_string()),
        in_flight: Set(0),
        standing: Set(Standing::Active.as_str().into()),
        cooldown_until: Set(None),
        throttle_streak: Set(0),
        reason: Set(None),
        cooldowns: Set(None),
    })
    .on_conflict(
        OnConflict::column(account_state::Column::Account)
            .do_nothing_on([account_state::Column::Account])
            .to_owned(),
    )
    .exec_without_returning(tx)
    .await?;
    // One of this name was removed before, and is there again.
    account_state::Entity::update_many()
        .col_expr(
            account_state::Column::Standing,
            Standing::Active.as_str().into(),
        )
        .col_expr(account_state::Column::Reason, Option::<String>::None.into())
        .filter(account_state::Column::Account.eq(account.id.as_str()))
        .filter(account_state::Column::Reason.eq(REMOVED))
        .exec(tx)
        .await?;
    Ok(())
}
