//! The truth plane as it lies in the database, past the API.

use std::path::Path;

use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement, TryGetable};
use url::Url;

use super::services::connect;

/// A look at the database.
#[derive(Debug)]
pub(crate) struct Truth(DatabaseConnection);

impl Truth {
    pub(crate) async fn postgres(url: &Url) -> Self {
        Self(connect(url).await)
    }

    pub(crate) async fn sqlite(file: &Path) -> Self {
        let url = format!("sqlite://{}?mode=rw", file.display());
        Self(connect(&url.parse().unwrap()).await)
    }

    /// The rows of a query.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<QueryResult> {
        let statement = Statement::from_string(self.0.get_database_backend(), sql);
        self.0
            .query_all_raw(statement)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The first column of a query.
    pub(crate) async fn column<T: TryGetable>(&self, sql: &str) -> Vec<T> {
        let rows = self.rows(sql).await;
        rows.iter()
            .map(|row| row.try_get_by_index(0).unwrap())
            .collect()
    }

    /// A query's one number.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.column(sql).await[0]
    }

    /// A query's rows as one text each, for people.
    pub(crate) async fn lines(&self, sql: &str, columns: usize) -> Vec<String> {
        let text =
            |row: &QueryResult, index| row.try_get_by_index::<Option<String>>(index).unwrap();
        let line = |row: &QueryResult| {
            let values = (0..columns).map(|index| text(row, index).unwrap_or_else(|| "-".into()));
            values.collect::<Vec<_>>().join(" ")
        };
        self.rows(sql).await.iter().map(line).collect()
    }
}
