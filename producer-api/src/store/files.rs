//! Files, kept in pieces: none is ever in memory as a whole.

use sea_orm::{ConnectionTrait, QueryResult, Statement, Value};
use sluice_shared::domain::Time;
use uuid::Uuid;

use super::{Store, StoreError};

/// A file as it is kept, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRow {
    /// Its id.
    pub id: Uuid,
    /// Who uploaded it.
    pub client: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub purpose: String,
    /// Its size in bytes.
    pub size: u64,
    /// When its upload began.
    pub created_at: Time,
}

impl FileRow {
    fn read(row: &QueryResult) -> Result<Self, StoreError> {
        let size: i64 = row.try_get_by_index(4)?;
        Ok(Self {
            id: row.try_get_by_index(0)?,
            client: row.try_get_by_index(1)?,
            name: row.try_get_by_index(2)?,
            purpose: row.try_get_by_index(3)?,
            size: u64::try_from(size).unwrap_or(0),
            created_at: Time::from_millis(row.try_get_by_index(5)?),
        })
    }
}

const FILE: &str = "id, client, name, purpose, size, created_at";

impl Store {
    /// Begins an upload that nobody sees yet.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn open_file(&self, id: Uuid, client: &str, now: Time) -> Result<(), StoreError> {
        let values: [Value; 3] = [id.into(), client.into(), now.as_millis().into()];
        let sql = "INSERT INTO files (id, client, name, purpose, size, created_at) \
                   VALUES ($1, $2, '', '', 0, $3)";
        self.change_file(sql, values).await?;
        Ok(())
    }

    /// Keeps a piece of an upload, the first with the number 0.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn add_piece(&self, id: Uuid, number: u32, data: Vec<u8>) -> Result<(), StoreError> {
        let values: [Value; 3] = [id.into(), i64::from(number).into(), data.into()];
        let sql = "INSERT INTO file_pieces (file, number, data) VALUES ($1, $2, $3)";
        self.change_file(sql, values).await?;
        Ok(())
    }

    /// Makes an upload a file.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn accept_file(&self, file: &FileRow, now: Time) -> Result<bool, StoreError> {
        let values: [Value; 5] = [
            file.id.into(),
            file.name.as_str().into(),
            file.purpose.as_str().into(),
            i64::try_from(file.size).unwrap_or(i64::MAX).into(),
            now.as_millis().into(),
        ];
        let sql = "UPDATE files SET name = $2, purpose = $3, size = $4, accepted_at = $5 \
                   WHERE id = $1 AND accepted_at IS NULL";
        Ok(self.change_file(sql, values).await? > 0)
    }

    /// A file.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn file(&self, id: Uuid) -> Result<Option<FileRow>, StoreError> {
        let sql = format!("SELECT {FILE} FROM files WHERE id = $1 AND accepted_at IS NOT NULL");
        let found = self.find_files(&sql, [id.into()]).await?;
        found.first().map(FileRow::read).transpose()
    }

    /// A client's files, newest first, those behind `after`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn files(
        &self,
        client: &str,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<FileRow>, StoreError> {
        let sql = format!(
            "SELECT {FILE} FROM files WHERE accepted_at IS NOT NULL AND client = $1 AND id < $2 \
             ORDER BY id DESC LIMIT $3"
        );
        let values: [Value; 3] = [
            client.into(),
            after.unwrap_or(Uuid::max()).into(),
            i64::from(limit).into(),
        ];
        let found = self.find_files(&sql, values).await?;
        found.iter().map(FileRow::read).collect()
    }

    /// A piece of a file; none behind the last.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn piece(&self, id: Uuid, number: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT data FROM file_pieces WHERE file = $1 AND number = $2";
        let values: [Value; 2] = [id.into(), i64::from(number).into()];
        let found = self.find_files(sql, values).await?;
        Ok(found
            .first()
            .map(|row| row.try_get_by_index(0))
            .transpose()?)
    }

    /// Removes a file or an upload. Whether there was one.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn remove_file(&self, id: Uuid) -> Result<bool, StoreError> {
        // The pieces go first, so that what a crash leaves is still found.
        self.change_file("DELETE FROM file_pieces WHERE file = $1", [id.into()])
            .await?;
        let removed = self
            .change_file("DELETE FROM files WHERE id = $1", [id.into()])
            .await?;
        Ok(removed > 0)
    }

    /// Forgets uploads that began before this time and have not become files.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn sweep_files(&self, before: Time) -> Result<(), StoreError> {
        let sql = "SELECT id FROM files WHERE accepted_at IS NULL AND created_at < $1 LIMIT 100";
        for row in self.find_files(sql, [before.as_millis().into()]).await? {
            self.remove_file(row.try_get_by_index(0)?).await?;
        }
        Ok(())
    }

    async fn find_files(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<QueryResult>, StoreError> {
        let backend = self.read.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, values);
        Ok(self.read.query_all_raw(statement).await?)
    }

    async fn change_file(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64, StoreError> {
        let backend = self.write.get_database_backend();
        let statement = Statement::from_sql_and_values(backend, sql, values);
        Ok(self.write.execute_raw(statement).await?.rows_affected())
    }
}
