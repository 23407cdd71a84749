//! Many rows in one statement, on both databases.
//!
//! A statement that takes rows begins `WITH v(a, b) AS (…)`, and only what stands in the brackets
//! differs: on Postgres `unnest` of one array a column, so that the text of the statement is the
//! same for any number of rows and is prepared once; on SQLite `VALUES`, cut into a few fixed
//! sizes for the same reason. Arrays hold no nulls here, so "none" travels as 0 or as an empty
//! text and the statement says `NULLIF`.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement, Value};
use uuid::Uuid;

/// One column of many rows.
#[derive(Clone, Debug)]
pub(super) enum Column {
    Id(Vec<Uuid>),
    Number(Vec<i64>),
    Text(Vec<String>),
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Self::Id(values) => values.len(),
            Self::Number(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    fn postgres_type(&self) -> &'static str {
        match self {
            Self::Id(_) => "uuid[]",
            Self::Number(_) => "bigint[]",
            Self::Text(_) => "text[]",
        }
    }

    fn take_value(&mut self, row: usize) -> Value {
        match self {
            Self::Id(values) => values[row].into(),
            Self::Number(values) => values[row].into(),
            Self::Text(values) => std::mem::take(&mut values[row]).into(),
        }
    }

    fn into_array(self) -> Value {
        match self {
            Self::Id(values) => values.into(),
            Self::Number(values) => values.into(),
            Self::Text(values) => values.into(),
        }
    }
}

/// Rows for a statement.
#[derive(Debug)]
pub(super) struct Rows {
    names: &'static [&'static str],
    columns: Vec<Column>,
}

/// SQLite statements are made for these numbers of rows only, so that each is prepared once.
const CHUNKS: [usize; 5] = [256, 64, 16, 4, 1];

impl Rows {
    /// Rows with these columns, all of one length.
    pub(super) fn new(names: &'static [&'static str], columns: Vec<Column>) -> Self {
        debug_assert_eq!(names.len(), columns.len());
        debug_assert!(
            columns
                .windows(2)
                .all(|pair| pair[0].len() == pair[1].len())
        );
        Self { names, columns }
    }

    fn len(&self) -> usize {
        self.columns.first().map_or(0, Column::len)
    }

    /// Runs `body`, which reads the rows as the table `v`. Returns how many rows it changed.
    pub(super) async fn execute(self, db: &impl ConnectionTrait, body: &str) -> Result<u64, DbErr> {
        let mut changed = 0;
        for statement in self.statements(db.get_database_backend(), body) {
            changed += db.execute_raw(statement).await?.rows_affected();
        }
        Ok(changed)
    }

    /// Runs `body`, which reads the rows as the table `v`, and gives what it returns.
    pub(super) async fn query(
        self,
        db: &impl ConnectionTrait,
        body: &str,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let mut found = Vec::new();
        for statement in self.statements(db.get_database_backend(), body) {
            found.append(&mut db.query_all_raw(statement).await?);
        }
        Ok(found)
    }

    fn statements(mut self, backend: DbBackend, body: &str) -> Vec<Statement> {
        let names = self.names.join(", ");
        if self.len() == 0 {
            return Vec::new();
        }
        if backend == DbBackend::Postgres {
            let arrays: Vec<String> = self
                .columns
                .iter()
                .enumerate()
                .map(|(index, column)| format!("${}::{}", index + 1, column.postgres_type()))
                .collect();
            let sql = format!(
                "WITH v({names}) AS (SELECT * FROM unnest({})) {body}",
                arrays.join(", ")
            );
            let values: Vec<Value> = self.columns.into_iter().map(Column::into_array).collect();
            return vec![Statement::from_sql_and_values(backend, sql, values)];
        }
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        let mut statements = Vec::new();
        let mut done = 0;
        while done < self.len() {
            let left = self.len() - done;
            let chunk = CHUNKS.into_iter().find(|chunk| *chunk <= left).unwrap_or(1);
            let sql = format!(
                "WITH v({names}) AS (VALUES {}) {body}",
                vec![row.as_str(); chunk].join(", ")
            );
            let mut values = Vec::with_capacity(chunk * self.columns.len());
            for index in done..done + chunk {
                for column in &mut self.columns {
                    values.push(column.take_value(index));
                }
            }
            statements.push(Statement::from_sql_and_values(backend, sql, values));
            done += chunk;
        }
        statements
    }
}
