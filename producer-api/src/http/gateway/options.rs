//! What a caller may ask of Sluice itself, in the field `sluice` of a foreign request.

use serde::Deserialize;
use serde_json::Value;
use sluice_shared::{
    api::{NewFallback, NewJob},
    domain::{AccountId, Delivery, Span},
};

use super::{fault::Fault, fields::Fields};

/// Jobs that somebody waits for go before others.
const INTERACTIVE: i16 = 50;

/// The field's name.
const FIELD: &str = "sluice";

/// Options of the job; each means what it means in `POST /api/jobs`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    priority: Option<i16>,
    timeout: Option<Span>,
    max_attempts: Option<u32>,
    delivery: Option<Delivery>,
    session: Option<String>,
    account: Option<AccountId>,
    tags: Vec<String>,
    models: Vec<String>,
    fallbacks: Vec<NewFallback>,
}

/// Takes the options out; a job of this model with them, that asks nothing yet and that somebody
/// waits for.
pub(in crate::http) fn job(fields: &mut Fields) -> Result<NewJob, Fault> {
    let job = background_job(fields)?;
    Ok(NewJob {
        priority: job.priority.or(Some(INTERACTIVE)),
        ..job
    })
}

/// As [`job`], for a job that nobody waits for.
pub(in crate::http) fn background_job(fields: &mut Fields) -> Result<NewJob, Fault> {
    let model = fields.needed_text("model")?;
    let given = fields
        .take(FIELD)
        .unwrap_or(Value::Object(serde_json::Map::new()));
    let options: Options =
        serde_json::from_value(given).map_err(|error| Fault::invalid(FIELD, error.to_string()))?;
    Ok(NewJob {
        model: options.models.is_empty().then_some(model),
        models: options.models,
        priority: options.priority,
        timeout: options.timeout,
        max_attempts: options.max_attempts,
        delivery: options.delivery,
        session: options.session,
        account: options.account,
        tags: options.tags,
        fallbacks: options.fallbacks,
        ..NewJob::default()
    })
}
