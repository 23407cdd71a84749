//! Accounts made at run time: making, changing and removing them.
//!
//! Every change first takes the row of `account_roll`, so that changes come one after the other
//! on any number of API processes, and leaves a higher revision there, which is how the others
//! know.

use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter,
    QuerySelect, Statement, sea_query::OnConflict,
};
use sluice_shared::{
    domain::{Account, AccountId, Standing, Time},
    roll::Definition,
};

use super::{
    Store, StoreError, count,
    entity::{account, account_definition, account_state},
    parse_json, to_json,
};

/// An account's definition as it is kept.
#[derive(Clone, Debug)]
pub struct DefinitionRow {
    /// Settings and sealed secrets.
    pub definition: Definition,
    /// The roll's revision at its last change.
    pub revision: i64,
}

/// What became of the removal of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It was not made at run time, or is gone already.
    NotThere,
    /// So many attempts of it are still in flight.
    Busy(u32),
}

impl Store {
    /// The number of changes to all accounts, more or less: it only grows.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn account_revision(&self) -> Result<i64, StoreError> {
        let sql = "SELECT revision FROM account_roll WHERE id = 1";
        let statement = Statement::from_string(self.read.get_database_backend(), sql);
        let row = self.read.query_one_raw(statement).await?;
        let row = row.ok_or_else(|| StoreError::Internal("account_roll is empty".into()))?;
        Ok(row.try_get_by_index(0)?)
    }

    /// Makes an account. False when there is one of this name.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn make_account(
        &self,
        account: &Account,
        definition: &Definition,
        now: Time,
    ) -> Result<bool, StoreError> {
        let tx = self.begin().await?;
        let revision = next_revision(&tx, now).await?;
        let there = account::Entity::find_by_id(account.id.as_str())
            .filter(account::Column::Removed.eq(false))
            .one(&tx)
            .await?;
        if there.is_some() {
            tx.rollback().await?;
            return Ok(false);
        }
        super::accounts::put_account(&tx, account).await?;
        // One of this name may have been there before and left its troubles.
        account_state::Entity::update_many()
            .col_expr(
                account_state::Column::Standing,
                Standing::Active.as_str().into(),
            )
            .col_expr(
                account_state::Column::CooldownUntil,
                Option::<i64>::None.into(),
            )
            .col_expr(account_state::Column::ThrottleStreak, 0_i64.into())
            .col_expr(account_state::Column::Reason, Option::<String>::None.into())
            .filter(account_state::Column::Account.eq(account.id.as_str()))
            .exec(&tx)
            .await?;
        put_definition(&tx, &account.id, definition, revision).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Changes an account that was made at run time. False when it is no longer as it was at
    /// `revision`: then look again.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn change_account(
        &self,
        account: &Account,
        definition: &Definition,
        revision: i64,
        now: Time,
    ) -> Result<bool, StoreError> {
        let tx = self.begin().await?;
        let next = next_revision(&tx, now).await?;
        let as_it_was = account_definition::Entity::find_by_id(account.id.as_str())
            .filter(account_definition::Column::Revision.eq(revision))
            .one(&tx)
            .await?;
        if as_it_was.is_none() {
            tx.rollback().await?;
            return Ok(false);
        }
        super::accounts::put_account(&tx, account).await?;
        put_definition(&tx, &account.id, definition, next).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes an account that was made at run time, and its secrets with it. Its history stays.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn remove_account(&self, id: &AccountId, now: Time) -> Result<Removed, StoreError> {
        let tx = self.begin().await?;
        next_revision(&tx, now).await?;
        // The row that every claim locks: none of them binds a job while this looks.
        let state = account_state::Entity::find_by_id(id.as_str())
            .lock_exclusive()
            .one(&tx)
            .await?;
        let deleted = account_definition::Entity::delete_by_id(id.as_str())
            .exec(&tx)
            .await?;
        let in_flight = state.map_or(0, |state| count(state.in_flight));
        let refusal = match (deleted.rows_affected, in_flight) {
            (0, _) => Some(Removed::NotThere),
            (_, 1..) => Some(Removed::Busy(in_flight)),
            (_, 0) => None,
        };
        if let Some(refusal) = refusal {
            tx.rollback().await?;
            return Ok(refusal);
        }
        account::Entity::update_many()
            .col_expr(account::Column::Removed, true.into())
            .filter(account::Column::Id.eq(id.as_str()))
            .exec(&tx)
            .await?;
        // Another API process may not know yet, and must not bind jobs to it.
        account_state::Entity::update_many()
            .col_expr(
                account_state::Column::Standing,
                Standing::Paused.as_str().into(),
            )
            .col_expr(
                account_state::Column::Reason,
                Some(super::accounts::REMOVED).into(),
            )
            .filter(account_state::Column::Account.eq(id.as_str()))
            .exec(&tx)
            .await?;
        tx.commit().await?;
        Ok(Removed::Gone)
    }
}

/// Takes the lock of all changes to accounts, and the revision that this one leaves: at least the
/// time in milliseconds, so that it grows even over a database that was restored.
pub(super) async fn next_revision(tx: &DatabaseTransaction, now: Time) -> Result<i64, StoreError> {
    let sql = "UPDATE account_roll \
               SET revision = CASE WHEN revision < $1 THEN $1 ELSE revision + 1 END \
               WHERE id = 1 RETURNING revision";
    let values = [now.as_millis().into()];
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, values);
    let row = tx.query_one_raw(statement).await?;
    let row = row.ok_or_else(|| StoreError::Internal("account_roll is empty".into()))?;
    Ok(row.try_get_by_index(0)?)
}

async fn put_definition(
    tx: &DatabaseTransaction,
    id: &AccountId,
    definition: &Definition,
    revision: i64,
) -> Result<(), StoreError> {
    account_definition::Entity::insert(account_definition::ActiveModel {
        account: Set(id.to_string()),
        settings: Set(to_json("settings", &definition.settings)?),
        secrets: Set(to_json("secrets", &definition.secrets)?),
        revision: Set(revision),
    })
    .on_conflict(
        OnConflict::column(account_definition::Column::Account)
            .update_columns([
                account_definition::Column::Settings,
                account_definition::Column::Secrets,
                account_definition::Column::Revision,
            ])
            .to_owned(),
    )
    .exec_without_returning(tx)
    .await?;
    Ok(())
}

pub(super) fn definition(row: account_definition::Model) -> Result<DefinitionRow, StoreError> {
    Ok(DefinitionRow {
        definition: Definition {
            settings: parse_json("settings", &row.settings)?,
            secrets: parse_json("secrets", &row.secrets)?,
        },
        revision: row.revision,
    })
}
