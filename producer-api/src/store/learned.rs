//! What providers say about their own limits, kept for each account.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, DatabaseTransaction, Statement};
use sluice_shared::domain::{
    AccountId,
    figure::{self, Figure},
};

use super::{
    Store, StoreError,
    bulk::{Column, Rows},
    parse_json,
    settle::Verdict,
    to_json,
};

/// Takes in what the verdicts' replies have heard; most have heard nothing.
pub(super) async fn write(
    tx: &DatabaseTransaction,
    verdicts: &[Verdict],
) -> Result<(), StoreError> {
    let mut news: BTreeMap<String, Vec<Figure>> = BTreeMap::new();
    for verdict in verdicts {
        if let Verdict::Report(reply) = verdict
            && !reply.learned.is_empty()
        {
            let account = news.entry(reply.account.to_string()).or_default();
            figure::merge(account, reply.learned.iter().cloned());
        }
    }
    if news.is_empty() {
        return Ok(());
    }
    let rows = Rows::new(
        &["account"],
        vec![Column::Text(news.keys().cloned().collect())],
    )
    .query(
        tx,
        "SELECT l.account, l.figures FROM v JOIN account_learned l ON l.account = v.account",
    )
    .await?;
    for row in rows {
        let (account, known): (String, String) =
            (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        if let Some(news) = news.get_mut(&account) {
            figure::merge(news, parse_json::<Vec<Figure>>("figures", &known)?);
        }
    }
    let (mut accounts, mut figures) = (Vec::new(), Vec::new());
    for (account, news) in news {
        accounts.push(account);
        figures.push(to_json("figures", &news)?);
    }
    Rows::new(
        &["account", "figures"],
        vec![Column::Text(accounts), Column::Text(figures)],
    )
    .execute(
        tx,
        "INSERT INTO account_learned (account, figures) SELECT account, figures FROM v WHERE TRUE \
         ON CONFLICT (account) DO UPDATE SET figures = excluded.figures",
    )
    .await?;
    Ok(())
}

impl Store {
    /// What the account's provider has said about its limits.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn learned(&self, account: &AccountId) -> Result<Vec<Figure>, StoreError> {
        let row = self
            .read
            .query_one_raw(Statement::from_sql_and_values(
                self.read.get_database_backend(),
                "SELECT figures FROM account_learned WHERE account = $1",
                [account.as_str().into()],
            ))
            .await?;
        let Some(row) = row else {
            return Ok(Vec::new());
        };
        parse_json("figures", &row.try_get_by_index::<String>(0)?)
    }
}
