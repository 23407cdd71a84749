//! One job; its payload and answers stand apart.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "jobs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    #[sea_orm(column_type = "Text")]
    pub state: String,
    #[sea_orm(column_type = "Text")]
    pub client: String,
    #[sea_orm(column_type = "Text")]
    pub lane: String,
    #[sea_orm(column_type = "Text")]
    pub model: Option<String>,
    pub priority: i64,
    pub fair_tag: i64,
    pub ready: bool,
    pub run_at: i64,
    pub expires_at: Option<i64>,
    pub timeout_ms: i64,
    pub attempt: i64,
    pub failures: i64,
    pub losses: i64,
    pub max_attempts: i64,
    pub at_most_once: bool,
    pub cancel_requested: bool,
    #[sea_orm(column_type = "Text")]
    pub account: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub worker: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub session: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub metadata: String,
    pub retry_of: Option<Uuid>,
    #[sea_orm(column_type = "Text")]
    pub webhook: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub error_code: Option<String>,
    #[sea_orm(column_type = "Text")]
    pub error_message: Option<String>,
    pub created_at: i64,
    pub dispatched_at: Option<i64>,
    pub started_at: Option<i64>,
    pub lease_until: Option<i64>,
    pub finished_at: Option<i64>,
    pub batch: Option<Uuid>,
    pub batch_line: Option<i64>,
    pub has_children: bool,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {
    #[sea_orm(has_many = "super::attempt::Entity")]
    Attempts,
}

impl Related<super::attempt::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Attempts.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
