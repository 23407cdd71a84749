//! Many rows in one statement, on both databases.
//!
//! A statement that takes rows begins `WITH v(a, b) AS (…)`, and only what stands in the brackets
//! differs: on Postgres `unnest` of one array a column, so that the text of the statement is the
//! same for any number of rows and is prepared once; on SQLite `VALUES`, cut into a few fixed
//! sizes for the same reason. Arrays hold no nulls here, so "none" travels as 0 or as an empty
//! text and the statement says `NULLIF`.
//!
//! To ask the database takes longer than a small statement does, so that what is written together
//! is also sent together: see [`write_together`].

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

/// Rows of what SQLite is sent together, at most: beyond it there would be more different
/// statements than can be kept prepared.
const MOST_TOGETHER: usize = 4;

/// What a statement does with its rows.
#[derive(Debug)]
pub(super) struct Write {
    rows: Rows,
    body: String,
}

impl Write {
    /// Runs it. Returns how many rows it changed.
    pub(super) async fn execute(self, db: &impl ConnectionTrait) -> Result<u64, DbErr> {
        self.rows.execute(db, &self.body).await
    }
}

/// Runs statements none of which sees what another changes. They are sent as one where that can
/// be: on Postgres as common table expressions, on SQLite one behind the other.
pub(super) async fn write_together(
    db: &impl ConnectionTrait,
    writes: Vec<Write>,
) -> Result<(), DbErr> {
    let mut writes = of_some_rows(writes);
    let backend = db.get_database_backend();
    if backend == DbBackend::Postgres {
        if let Some(last) = writes.pop() {
            db.execute_raw(as_one(writes, last)).await?;
        }
        return Ok(());
    }
    let few = writes.iter().all(|write| write.rows.len() <= MOST_TOGETHER);
    let statements = writes
        .into_iter()
        .flat_map(|write| write.rows.statements(backend, &write.body));
    if few {
        let (texts, values): (Vec<String>, Vec<_>) = statements
            .map(|statement| (statement.sql, statement.values.map_or(vec![], |all| all.0)))
            .unzip();
        if !texts.is_empty() {
            let (sql, values) = (texts.join("; "), values.concat());
            db.execute_raw(Statement::from_sql_and_values(backend, sql, values))
                .await?;
        }
        return Ok(());
    }
    for statement in statements {
        db.execute_raw(statement).await?;
    }
    Ok(())
}

/// As [`write_together`], with one more statement, and gives what that one returns. It must have
/// rows.
pub(super) async fn write_and_query(
    db: &impl ConnectionTrait,
    writes: Vec<Write>,
    last: Write,
) -> Result<Vec<QueryResult>, DbErr> {
    if db.get_database_backend() == DbBackend::Postgres {
        return db.query_all_raw(as_one(of_some_rows(writes), last)).await;
    }
    write_together(db, writes).await?;
    last.rows.query(db, &last.body).await
}

fn of_some_rows(writes: Vec<Write>) -> Vec<Write> {
    let mut writes = writes;
    writes.retain(|write| write.rows.len() > 0);
    writes
}

/// Postgres' way to run statements as one.
fn as_one(writes: Vec<Write>, last: Write) -> Statement {
    let mut values = Vec::new();
    let mut sql = String::from("WITH ");
    for (index, Write { rows, body }) in writes.into_iter().enumerate() {
        let table = rows.unnest(values.len());
        sql += &format!("w{index} AS (WITH {table} {body}), ");
        values.extend(rows.columns.into_iter().map(Column::into_array));
    }
    sql += &format!("{} {}", last.rows.unnest(values.len()), last.body);
    values.extend(last.rows.columns.into_iter().map(Column::into_array));
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}

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

    /// A statement of `body`, which reads the rows as the table `v`.
    pub(super) fn write(self, body: impl Into<String>) -> Write {
        Write {
            rows: self,
            body: body.into(),
        }
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

    /// Postgres's table `v` of the rows, after `before` parameters of others. The subqueries hide
    /// how many rows there are: Postgres would plan for just that number, and so each time anew,
    /// which takes longer than to run it.
    fn unnest(&self, before: usize) -> String {
        let arrays: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                format!(
                    "(SELECT ${}::{})",
                    before + index + 1,
                    column.postgres_type()
                )
            })
            .collect();
        format!(
            "v({}) AS (SELECT * FROM unnest({}))",
            self.names.join(", "),
            arrays.join(", ")
        )
    }

    fn statements(mut self, backend: DbBackend, body: &str) -> Vec<Statement> {
        let names = self.names.join(", ");
        if self.len() == 0 {
            return Vec::new();
        }
        if backend == DbBackend::Postgres {
            let sql = format!("WITH {} {body}", self.unnest(0));
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
