//! What a job must be to be accepted. Pure: from a [`NewJob`] to the row that is kept, or to
//! everything that is wrong with it.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value};
use sluice_shared::{
    api::{FieldError, NewJob},
    domain::{
        Account, After, Egress, JobId, Lane, Message, OnParentFailure, Request, Role, Span, Time,
        after::{HELD, MOST_PARENTS, parts},
    },
};

use super::{
    fallbacks, lane,
    problem::{ApiError, Code, MOST_FIELDS, clip},
    webhook_rules,
};
use crate::{app::App, store::NewRow};

/// How far ahead a job may be put off.
const MOST_AHEAD: Duration = Duration::from_secs(365 * 86_400);
const DEFAULT_TIMEOUT: Span = Span::seconds(600);
const LEAST_TIMEOUT: Span = Span::seconds(1);
const MOST_TIMEOUT: Span = Span::seconds(86_400);
const DEFAULT_ATTEMPTS: u32 = 3;
const MOST_ATTEMPTS: u32 = 100;
const MOST_PRIORITY: i16 = 100;
const MOST_MESSAGES: usize = 10_000;
pub(super) const MOST_TAGS: usize = 16;
pub(super) const MOST_TAG: usize = 64;
const MOST_METADATA: usize = 32;
const MOST_METADATA_KEY: usize = 64;
const MOST_METADATA_VALUE: usize = 512;
pub(super) const MOST_NAME: usize = 255;
const MOST_PARAMS: usize = 64 * 1024;

/// What a job is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// Longest text of a job, all messages together, in bytes.
    pub(super) max_prompt_bytes: usize,
    /// The accounts that there are.
    pub(super) accounts: &'a [Account],
    /// The time of the submit.
    pub(super) now: Time,
    /// Where its webhook may go; none where nothing can be signed.
    pub(super) webhooks: Option<&'a Egress>,
}

impl<'a> Rules<'a> {
    /// Those of this installation, with these accounts.
    pub(super) fn of(app: &'a App, accounts: &'a [Account], now: Time) -> Self {
        Self {
            max_prompt_bytes: app.config.api.max_prompt_bytes,
            accounts,
            now,
            webhooks: app.master_key.as_ref().map(|_| &app.egress),
        }
    }
}

/// One thing that is wrong with a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) code: Code,
    pub(super) field: String,
    pub(super) detail: String,
}

/// What is wrong with one job or with many.
#[derive(Debug, Default)]
pub(super) struct Flaws(Vec<Flaw>);

impl Flaws {
    pub(super) fn add(&mut self, code: Code, field: impl Into<String>, detail: impl Into<String>) {
        if !self.is_full() {
            self.0.push(Flaw {
                code,
                field: clip(&field.into()),
                detail: detail.into(),
            });
        }
    }

    /// Takes over the flaws of job `index` of an array.
    pub(super) fn of_element(&mut self, index: usize, flaws: Flaws) {
        for Flaw {
            code,
            field,
            detail,
        } in flaws.0
        {
            self.add(code, format!("[{index}].{field}"), detail);
        }
    }

    /// Takes over the flaws of a part of the job.
    pub(super) fn of_part(&mut self, part: &str, flaws: Flaws) {
        for flaw in flaws.0 {
            self.add(flaw.code, format!("{part}.{}", flaw.field), flaw.detail);
        }
    }

    /// Takes over flaws as those of one field.
    pub(super) fn of_whole(&mut self, field: &str, flaws: Flaws) {
        for flaw in flaws.0 {
            self.add(flaw.code, field, flaw.detail);
        }
    }

    /// Whether there are enough of them to stop looking.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MOST_FIELDS
    }

    /// All is well, or a refusal that names every flaw.
    pub(super) fn refuse(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(self.into())
        }
    }

    pub(super) fn invalid(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.add(Code::InvalidJob, field, detail);
    }

    /// A text that Postgres can keep; it has no way to write NUL.
    fn kept(&mut self, field: impl FnOnce() -> String, text: &str) {
        if text.contains('\0') {
            self.nul(field());
        }
    }

    fn nul(&mut self, field: impl Into<String>) {
        self.add(
            Code::InvalidCharacter,
            field,
            "holds a NUL character, which cannot be kept",
        );
    }

    /// A short text: not empty, at most `most` characters.
    pub(super) fn name(&mut self, field: &str, text: &str, most: usize) {
        self.kept(|| field.into(), text);
        if text.is_empty() {
            self.invalid(field, "is empty");
        } else if text.len() > most && text.chars().count() > most {
            self.invalid(field, format!("is longer than {most} characters"));
        }
    }
}

impl From<Flaws> for ApiError {
    /// The first flaw decides the code; all of them are named.
    fn from(Flaws(flaws): Flaws) -> Self {
        let others = match flaws.len() {
            0 | 1 => String::new(),
            2 => " (and one more mistake)".into(),
            many => format!(" (and {} more mistakes)", many - 1),
        };
        let (code, whole) = match flaws.first() {
            Some(Flaw {
                code,
                field,
                detail,
            }) => (*code, format!("{field}: {detail}{others}")),
            None => (Code::InvalidJob, "the job cannot be".into()),
        };
        let error = |Flaw { field, detail, .. }| FieldError { field, detail };
        ApiError::new(code, whole).with(flaws.into_iter().map(error).collect())
    }
}

/// The row of a job, or what is wrong with it.
pub(super) fn row(mut job: NewJob, id: JobId, rules: &Rules<'_>) -> Result<NewRow, Flaws> {
    let mut flaws = Flaws::default();
    let by_models = !job.models.is_empty();
    let fallbacks = fallbacks::take(&mut job, &mut flaws);
    let system = job.system.filter(|system| !system.is_empty());
    let field = if job.prompt.is_some() {
        "prompt"
    } else {
        "messages"
    };
    let messages = conversation(job.prompt, job.messages, &mut flaws);
    check_text(field, &messages, system.as_deref(), rules, &mut flaws);
    check_names(
        job.model.as_deref(),
        job.session.as_deref(),
        &job.tags,
        &mut flaws,
    );
    check_params(&job.params, &mut flaws);
    check_metadata(&job.metadata, &mut flaws);
    if let Some(webhook) = &mut job.webhook {
        webhook_rules::of_job(webhook, rules.webhooks, &mut flaws);
    }
    let priority = job.priority.unwrap_or(0);
    if !(-MOST_PRIORITY..=MOST_PRIORITY).contains(&priority) {
        flaws.invalid(
            "priority",
            format!("is {priority}; it goes from -100 to 100"),
        );
    }
    let timeout = job.timeout.unwrap_or(DEFAULT_TIMEOUT);
    if !(LEAST_TIMEOUT..=MOST_TIMEOUT).contains(&timeout) {
        flaws.invalid("timeout", format!("is {timeout}; it goes from 1s to 24h"));
    }
    let max_attempts = job.max_attempts.unwrap_or(DEFAULT_ATTEMPTS);
    if !(1..=MOST_ATTEMPTS).contains(&max_attempts) {
        flaws.invalid(
            "max_attempts",
            format!("is {max_attempts}; it goes from 1 to 100"),
        );
    }
    let run_at = due(job.run_at, job.delay, rules.now, &mut flaws);
    if let Some(expires_at) = job.expires_at {
        if expires_at <= rules.now {
            flaws.invalid("expires_at", format!("is {expires_at}, which has passed"));
        } else if expires_at <= run_at {
            flaws.invalid("expires_at", "is before the job may begin");
        }
    }
    let after = after(job.after, job.on_parent_failure, run_at, &mut flaws);
    if let Some(after) = &after {
        check_placeholders(
            field,
            &messages,
            system.as_deref(),
            &after.parents,
            &mut flaws,
        );
    }
    let lane = Lane::new(job.account, job.model.clone(), job.tags);
    let delivery = job.delivery.unwrap_or_default();
    let mut steps = Vec::new();
    if flaws.0.is_empty() {
        let mut lacks = Flaws::default();
        lane::check(&lane, rules.accounts, &mut lacks);
        if by_models && lacks.0.iter().all(|flaw| flaw.field == "model") {
            flaws.of_whole("models[0]", lacks);
        } else {
            flaws = lacks;
        }
        let context = fallbacks::Context {
            lane: &lane,
            max_attempts,
            delivery,
            from: run_at.max(rules.now),
            expires_at: job.expires_at,
            accounts: rules.accounts,
        };
        steps = fallbacks::steps(fallbacks, &context, &mut flaws);
    }
    if !flaws.0.is_empty() {
        return Err(flaws);
    }
    Ok(NewRow {
        id,
        lane,
        priority,
        run_at: if after.is_some() { HELD } else { run_at },
        expires_at: job.expires_at,
        timeout_ms: timeout.as_millis(),
        max_attempts,
        delivery,
        session: job.session,
        metadata: metadata_text(job.metadata),
        retry_of: None,
        traceparent: None,
        request: Request {
            messages,
            system,
            model: job.model,
            params: job.params,
        },
        steps,
        webhook: job.webhook,
        after,
    })
}

/// What the job comes after.
fn after(
    mut parents: Vec<JobId>,
    on_failure: Option<OnParentFailure>,
    run_at: Time,
    flaws: &mut Flaws,
) -> Option<After> {
    if parents.is_empty() {
        if on_failure.is_some() {
            flaws.invalid("on_parent_failure", "is of no use without after");
        }
        return None;
    }
    if parents.len() > MOST_PARENTS {
        let detail = format!("names {} jobs; the most is {MOST_PARENTS}", parents.len());
        flaws.invalid("after", detail);
        parents.truncate(MOST_PARENTS);
    }
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = parents.iter().position(|parent| !seen.insert(*parent)) {
        flaws.invalid(format!("after[{twice}]"), "is named before");
    }
    Some(After {
        parents,
        on_failure: on_failure.unwrap_or_default(),
        run_at,
    })
}

/// The places of results in the texts of a job that comes after others.
fn check_placeholders(
    field: &str,
    messages: &[Message],
    system: Option<&str>,
    parents: &[JobId],
    flaws: &mut Flaws,
) {
    for (index, message) in messages.iter().enumerate() {
        if let Err(why) = parts(&message.content, parents) {
            match field {
                "prompt" => flaws.invalid("prompt", why),
                _ => flaws.invalid(format!("messages[{index}].content"), why),
            }
        }
    }
    if let Err(why) = parts(system.unwrap_or_default(), parents) {
        flaws.invalid("system", why);
    }
}

/// Metadata as it is kept: a JSON object.
pub(super) fn metadata_text(metadata: BTreeMap<String, String>) -> String {
    if metadata.is_empty() {
        return "{}".into();
    }
    Value::from_iter(metadata).to_string()
}

fn conversation(
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    flaws: &mut Flaws,
) -> Vec<Message> {
    match (prompt, messages) {
        (Some(prompt), None) => {
            if prompt.trim().is_empty() {
                flaws.invalid("prompt", "is empty");
            }
            vec![Message {
                role: Role::User,
                content: prompt,
            }]
        }
        (None, Some(messages)) => {
            check_messages(&messages, flaws);
            messages
        }
        (Some(_), Some(_)) => {
            flaws.invalid("messages", "cannot be given together with prompt");
            Vec::new()
        }
        (None, None) => {
            flaws.invalid("prompt", "is missing; give prompt or messages");
            Vec::new()
        }
    }
}

fn check_messages(messages: &[Message], flaws: &mut Flaws) {
    if messages.len() > MOST_MESSAGES {
        flaws.invalid("messages", format!("are more than {MOST_MESSAGES}"));
        return;
    }
    if !messages.iter().any(|message| message.role == Role::User) {
        flaws.invalid("messages", "need at least one of the role user");
    }
    for (index, message) in messages.iter().enumerate() {
        if message.role == Role::User && message.content.trim().is_empty() {
            flaws.invalid(format!("messages[{index}].content"), "is empty");
        }
    }
}

fn check_text(
    field: &str,
    messages: &[Message],
    system: Option<&str>,
    rules: &Rules<'_>,
    flaws: &mut Flaws,
) {
    let of_messages: usize = messages.iter().map(|message| message.content.len()).sum();
    let size = of_messages + system.map_or(0, str::len);
    if size > rules.max_prompt_bytes {
        let detail = format!(
            "is {size} bytes in all; the most is {}",
            rules.max_prompt_bytes
        );
        flaws.add(Code::PromptTooLarge, field, detail);
        return;
    }
    for (index, message) in messages.iter().enumerate() {
        let field = || match field {
            "prompt" => "prompt".into(),
            _ => format!("messages[{index}].content"),
        };
        flaws.kept(field, &message.content);
    }
    flaws.kept(|| "system".into(), system.unwrap_or_default());
}

fn check_names(model: Option<&str>, session: Option<&str>, tags: &[String], flaws: &mut Flaws) {
    if let Some(model) = model {
        flaws.name("model", model, MOST_NAME);
    }
    if let Some(session) = session {
        flaws.name("session", session, MOST_NAME);
    }
    if tags.len() > MOST_TAGS {
        flaws.invalid(
            "tags",
            format!("are {}; the most is {MOST_TAGS}", tags.len()),
        );
        return;
    }
    for (index, tag) in tags.iter().enumerate() {
        flaws.name(&format!("tags[{index}]"), tag, MOST_TAG);
    }
}

fn check_params(params: &Map<String, Value>, flaws: &mut Flaws) {
    if params.is_empty() {
        return;
    }
    let size = serde_json::to_string(params).map_or(usize::MAX, |text| text.len());
    if size > MOST_PARAMS {
        flaws.invalid(
            "params",
            format!("is {size} bytes of JSON; the most is {MOST_PARAMS}"),
        );
    }
    if params
        .iter()
        .any(|(name, value)| name.contains('\0') || holds_nul(value))
    {
        flaws.nul("params");
    }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(holds_nul),
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| key.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn check_metadata(metadata: &BTreeMap<String, String>, flaws: &mut Flaws) {
    if metadata.len() > MOST_METADATA {
        let detail = format!(
            "has {} entries; the most is {MOST_METADATA}",
            metadata.len()
        );
        flaws.invalid("metadata", detail);
        return;
    }
    for (key, value) in metadata {
        if key.is_empty() {
            flaws.invalid("metadata", "has an entry without a name");
        } else if key.chars().count() > MOST_METADATA_KEY {
            let detail = format!("has a name longer than {MOST_METADATA_KEY} characters");
            flaws.invalid(format!("metadata.{key}"), detail);
        }
        if value.chars().count() > MOST_METADATA_VALUE {
            let detail = format!("is longer than {MOST_METADATA_VALUE} characters");
            flaws.invalid(format!("metadata.{key}"), detail);
        }
        if key.contains('\0') {
            flaws.nul("metadata");
        } else {
            flaws.kept(|| format!("metadata.{key}"), value);
        }
    }
}

/// When the job may begin.
fn due(run_at: Option<Time>, delay: Option<Span>, now: Time, flaws: &mut Flaws) -> Time {
    let (field, due) = match (run_at, delay) {
        (Some(_), Some(_)) => {
            flaws.invalid("delay", "cannot be given together with run_at");
            return now;
        }
        (Some(run_at), None) => ("run_at", run_at),
        (None, Some(delay)) => ("delay", now + delay.0),
        (None, None) => return now,
    };
    if due > now + MOST_AHEAD {
        flaws.invalid(field, "is more than a year ahead");
    }
    due
}

#[cfg(test)]
mod tests {
    use sluice_shared::domain::Delivery;

    use super::*;

    const NOW: Time = Time::from_millis(1_800_000_000_000);

    fn accept(job: NewJob) -> NewRow {
        let mut account = Account {
            id: "main".parse().unwrap(),
            provider: "simulated".into(),
            endpoint: String::new(),
            models: vec![],
            tags: job.tags.clone(),
            max_concurrency: 1,
            weight: 1,
            limits: vec![],
        };
        account.tags.push("more".into());
        let rules = Rules {
            max_prompt_bytes: 100,
            accounts: &[account],
            now: NOW,
            webhooks: None,
        };
        row(job, JobId::generate(), &rules).unwrap()
    }

    fn prompt(text: &str) -> NewJob {
        NewJob {
            prompt: Some(text.into()),
            ..NewJob::default()
        }
    }

    #[test]
    fn a_bare_prompt_has_defaults() {
        let row = accept(prompt("hello"));
        assert_eq!(row.request, Request::prompt("hello"));
        assert_eq!(row.lane, Lane::default());
        assert_eq!((row.run_at, row.expires_at, row.priority), (NOW, None, 0));
        assert_eq!((row.timeout_ms, row.max_attempts), (600_000, 3));
        assert_eq!(row.delivery, Delivery::AtLeastOnce);
        assert_eq!((row.metadata.as_str(), row.session), ("{}", None));
    }

    #[test]
    fn what_is_just_within_its_limits_is_accepted() {
        let metadata = (0..MOST_METADATA).map(|n| {
            let key = format!("{n:0>width$}", width = MOST_METADATA_KEY);
            (key, "\u{fc}".repeat(MOST_METADATA_VALUE))
        });
        let params = Map::from_iter([("a".into(), "x".repeat(MOST_PARAMS - 8).into())]);
        for timeout in [LEAST_TIMEOUT, MOST_TIMEOUT] {
            let row = accept(NewJob {
                system: Some("x".repeat(50)),
                model: Some("m".repeat(MOST_NAME)),
                params: params.clone(),
                priority: Some(-MOST_PRIORITY),
                delay: Some(Span(MOST_AHEAD)),
                expires_at: Some(NOW + MOST_AHEAD + Duration::from_millis(1)),
                timeout: Some(timeout),
                max_attempts: Some(MOST_ATTEMPTS),
                session: Some("\u{1f600}".repeat(MOST_NAME)),
                tags: (0..MOST_TAGS).map(|n| format!("{n:0>64}")).collect(),
                metadata: metadata.clone().collect(),
                ..prompt(&"x".repeat(50))
            });
            assert_eq!(row.run_at, NOW + MOST_AHEAD);
        }
    }

    #[test]
    fn a_time_that_has_passed_means_at_once() {
        let run_at = Some(Time::EPOCH);
        assert_eq!(
            accept(NewJob {
                run_at,
                ..prompt("a")
            })
            .run_at,
            Time::EPOCH
        );
    }

    #[test]
    fn an_empty_system_prompt_is_none() {
        let system = Some(String::new());
        assert_eq!(
            accept(NewJob {
                system,
                ..prompt("a")
            })
            .request
            .system,
            None
        );
    }
}
