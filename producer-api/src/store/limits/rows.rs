//! The rows of windows and charges. Their accounts must be locked by whoever changes them.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, FromQueryResult, QueryResult, Statement, Value,
};
use sluice_shared::domain::{AccountId, Amounts, Charge, JobId, Kind, Ledger, Span, Time, Window};
use uuid::Uuid;

use super::super::{
    StoreError,
    bulk::{Column, Rows},
    count, for_update, parse_json, to_json,
};

/// Locks accounts in the order in which everyone locks them.
pub(super) async fn lock(
    tx: &DatabaseTransaction,
    accounts: BTreeSet<String>,
) -> Result<(), StoreError> {
    let names: Vec<String> = accounts.into_iter().collect();
    if tx.get_database_backend() == DbBackend::Postgres {
        Rows::new(&["account"], vec![Column::Text(names)])
            .query(
                tx,
                &format!(
                    "SELECT s.account FROM v JOIN account_state s ON s.account = v.account \
                     ORDER BY s.account {}",
                    for_update(tx, "FOR UPDATE OF s")
                ),
            )
            .await?;
    }
    Ok(())
}

#[derive(FromQueryResult)]
struct WindowRow {
    account: String,
    kind: String,
    window_ms: i64,
    held: i64,
    landed: String,
    mean: i64,
}

/// The books of these accounts, as they are kept.
pub(in super::super) async fn ledgers(
    db: &impl ConnectionTrait,
    accounts: Vec<String>,
) -> Result<BTreeMap<String, Ledger>, StoreError> {
    let rows = Rows::new(&["account"], vec![Column::Text(accounts)])
        .query(
            db,
            "SELECT w.account, w.kind, w.window_ms, w.held, w.landed, w.mean FROM v \
             JOIN account_windows w ON w.account = v.account",
        )
        .await?;
    let mut windows: BTreeMap<String, Vec<Window>> = BTreeMap::new();
    for row in rows {
        let row = WindowRow::from_query_result(&row, "")?;
        let kind = Kind::from_name(&row.kind)
            .ok_or_else(|| StoreError::Internal(format!("kind `{}` is not known", row.kind)))?;
        let landed: Vec<i64> = parse_json("landed", &row.landed)?;
        let length = Span::from_millis(row.window_ms);
        let held = u64::try_from(row.held).unwrap_or(0);
        // -1 is none.
        let mean = u64::try_from(row.mean).ok();
        let window = Window::unpack(kind, length, held, &landed, mean);
        windows.entry(row.account).or_default().push(window);
    }
    let ledgers = windows.into_iter();
    Ok(ledgers
        .map(|(account, windows)| (account, Ledger::new(windows)))
        .collect())
}

pub(super) async fn write_ledgers<'a>(
    tx: &DatabaseTransaction,
    ledgers: impl Iterator<Item = (&'a String, &'a Ledger)>,
) -> Result<(), StoreError> {
    let (mut accounts, mut kinds, mut landed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut lengths, mut held, mut means) = (Vec::new(), Vec::new(), Vec::new());
    for (account, ledger) in ledgers {
        for window in ledger.windows() {
            accounts.push(account.clone());
            kinds.push(window.kind.as_str().to_owned());
            lengths.push(window.length.as_millis());
            held.push(number(window.held()));
            landed.push(to_json("landed", &window.pack())?);
            means.push(window.mean().map_or(-1, number));
        }
    }
    Rows::new(
        &["account", "kind", "window_ms", "held", "landed", "mean"],
        vec![
            Column::Text(accounts),
            Column::Text(kinds),
            Column::Number(lengths),
            Column::Number(held),
            Column::Text(landed),
            Column::Number(means),
        ],
    )
    .execute(
        tx,
        "INSERT INTO account_windows (account, kind, window_ms, held, landed, mean) \
         SELECT account, kind, window_ms, held, landed, mean FROM v WHERE TRUE \
         ON CONFLICT (account, kind, window_ms) DO UPDATE SET held = excluded.held, \
         landed = excluded.landed, mean = excluded.mean",
    )
    .await?;
    Ok(())
}

pub(super) async fn delete_windows(
    tx: &DatabaseTransaction,
    account: &str,
    windows: &[Window],
) -> Result<(), StoreError> {
    for window in windows {
        let values: [Value; 3] = [
            account.into(),
            window.kind.as_str().into(),
            window.length.as_millis().into(),
        ];
        tx.execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "DELETE FROM account_windows WHERE account = $1 AND kind = $2 AND window_ms = $3",
            values,
        ))
        .await?;
    }
    Ok(())
}

pub(super) const CHARGE: &str = "c.job, c.attempt, c.account, c.dispatched_at, c.started_by, \
                      c.input_tokens, c.output_tokens, c.cost_microusd";
pub(super) const CHARGE_COLUMNS: usize = 8;

pub(super) type Charged = ((JobId, u32), String, Charge);

pub(super) fn read_charge(row: &QueryResult) -> Result<Charged, StoreError> {
    let amount = |index| -> Result<u64, StoreError> {
        let number: i64 = row.try_get_by_index(index)?;
        Ok(u64::try_from(number).unwrap_or(0))
    };
    let job = JobId(row.try_get_by_index::<Uuid>(0)?);
    let attempt = count(row.try_get_by_index(1)?);
    let started_by: Option<i64> = row.try_get_by_index(4)?;
    let charge = Charge {
        amounts: Amounts::ONE_REQUEST
            .with(Kind::InputTokens, amount(5)?)
            .with(Kind::OutputTokens, amount(6)?)
            .with(Kind::Cost, amount(7)?),
        dispatched_at: Time::from_millis(row.try_get_by_index(3)?),
        started_by: started_by.map(Time::from_millis),
    };
    Ok(((job, attempt), row.try_get_by_index(2)?, charge))
}

pub(super) async fn insert_charges(
    tx: &DatabaseTransaction,
    charges: &[(JobId, u32, &str, Charge)],
) -> Result<(), StoreError> {
    let amounts = |kind| {
        let amount =
            |(_, _, _, charge): &(JobId, u32, &str, Charge)| number(charge.amounts.get(kind));
        Column::Number(charges.iter().map(amount).collect())
    };
    let account = |(_, _, account, _): &(JobId, u32, &str, Charge)| (*account).to_owned();
    Rows::new(
        &[
            "job",
            "attempt",
            "account",
            "at",
            "input_tokens",
            "output_tokens",
            "cost",
        ],
        vec![
            Column::Id(charges.iter().map(|(job, ..)| job.0).collect()),
            Column::Number(
                charges
                    .iter()
                    .map(|(_, attempt, ..)| i64::from(*attempt))
                    .collect(),
            ),
            Column::Text(charges.iter().map(account).collect()),
            Column::Number(
                charges
                    .iter()
                    .map(|(.., charge)| charge.dispatched_at.as_millis())
                    .collect(),
            ),
            amounts(Kind::InputTokens),
            amounts(Kind::OutputTokens),
            amounts(Kind::Cost),
        ],
    )
    .execute(
        tx,
        "INSERT INTO charges (job, attempt, account, dispatched_at, input_tokens, output_tokens, \
         cost_microusd) SELECT job, attempt, account, at, input_tokens, output_tokens, cost FROM v",
    )
    .await?;
    Ok(())
}

pub(super) async fn write_starts(
    tx: &DatabaseTransaction,
    started: &[(JobId, u32, String, Charge)],
) -> Result<(), StoreError> {
    let at =
        |(.., charge): &(JobId, u32, String, Charge)| charge.started_by.map_or(0, Time::as_millis);
    Rows::new(
        &["job", "attempt", "at"],
        vec![
            Column::Id(started.iter().map(|(job, ..)| job.0).collect()),
            Column::Number(
                started
                    .iter()
                    .map(|(_, attempt, ..)| i64::from(*attempt))
                    .collect(),
            ),
            Column::Number(started.iter().map(at).collect()),
        ],
    )
    .execute(
        tx,
        "UPDATE charges SET started_by = v.at FROM v \
         WHERE charges.job = v.job AND charges.attempt = v.attempt",
    )
    .await?;
    Ok(())
}

pub(super) async fn delete_charges(
    tx: &DatabaseTransaction,
    charges: &[(JobId, u32)],
) -> Result<(), StoreError> {
    let jobs = charges.iter().map(|(job, _)| job.0).collect();
    let attempts = charges
        .iter()
        .map(|(_, attempt)| i64::from(*attempt))
        .collect();
    Rows::new(
        &["job", "attempt"],
        vec![Column::Id(jobs), Column::Number(attempts)],
    )
    .execute(
        tx,
        "DELETE FROM charges WHERE (job, attempt) IN (SELECT job, attempt FROM v)",
    )
    .await?;
    Ok(())
}

/// Charges attempts that were under way before the account had limits, and gives all that are.
pub(super) async fn adopt(
    tx: &DatabaseTransaction,
    account: &AccountId,
) -> Result<Vec<Charge>, StoreError> {
    let statement = |sql: String| {
        Statement::from_sql_and_values(tx.get_database_backend(), sql, [account.as_str().into()])
    };
    tx.execute_raw(statement(
        "INSERT INTO charges (job, attempt, account, dispatched_at, input_tokens, output_tokens, \
         cost_microusd) SELECT id, attempt, account, dispatched_at, 0, 0, 0 FROM jobs \
         WHERE account = $1 AND state IN ('dispatched', 'running') \
         ON CONFLICT (job, attempt) DO NOTHING"
            .into(),
    ))
    .await?;
    let rows = tx
        .query_all_raw(statement(format!(
            "SELECT {CHARGE} FROM charges c WHERE c.account = $1"
        )))
        .await?;
    rows.iter().map(|row| Ok(read_charge(row)?.2)).collect()
}

fn number(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}
