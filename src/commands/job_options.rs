//! The options of a job as flags, shared by `submit` and `batch`.

use serde_json::Value;
use sluice_shared::{
    api::{JobWebhook, NewFallback, NewJob},
    domain::{AccountId, Delivery, Span, Time},
};

use super::{key_json, key_value, span, time};

/// The options of a job.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Job options")]
pub(crate) struct JobOptions {
    /// The model; only accounts that offer it can run the job [default: the account's own]
    #[arg(long, short)]
    model: Option<String>,

    /// Models in order of preference, instead of --model
    #[arg(
        long,
        value_name = "MODEL,...",
        value_delimiter = ',',
        conflicts_with = "model"
    )]
    models: Vec<String>,

    /// Where else it may run and when, such as '{"tags": ["sonnet"], "after": "1m"}'; may be given
    /// again
    #[arg(long = "fallback", value_name = "JSON", value_parser = fallback, conflicts_with = "models")]
    fallbacks: Vec<NewFallback>,

    /// The system prompt
    #[arg(long, short, value_name = "TEXT")]
    system: Option<String>,

    /// Only this account
    #[arg(long, short, value_name = "ID")]
    account: Option<AccountId>,

    /// Only accounts with this tag; give it again for accounts with all of several
    #[arg(long = "tag", short, value_name = "TAG")]
    tags: Vec<String>,

    /// Higher goes first, from -100 to 100
    #[arg(long, short, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i16>,

    /// Not before this long from now, such as 30s or "1h 30m"
    #[arg(long, value_name = "SPAN", value_parser = span, conflicts_with = "run_at")]
    delay: Option<Span>,

    /// Not before this time, such as 2026-11-23T20:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    run_at: Option<Time>,

    /// If it has not begun by this time, it ends expired
    #[arg(long, value_name = "TIME", value_parser = time)]
    expires_at: Option<Time>,

    /// How long the provider may take [default: 10m]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    timeout: Option<Span>,

    /// Failed attempts after which it ends failed [default: 3]
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,

    /// Never hand it to a provider twice, even when a worker dies
    #[arg(long)]
    at_most_once: bool,

    /// Jobs of one session prefer the same account
    #[arg(long, value_name = "NAME")]
    session: Option<String>,

    /// A note kept with the job, to search for; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,

    /// Whom to tell of its end, by a signed webhook
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,

    /// A provider parameter, such as temperature=0.2; may be given again
    #[arg(long = "param", value_name = "KEY=JSON", value_parser = key_json)]
    params: Vec<(String, Value)>,
}

impl JobOptions {
    /// Fills in what `job` itself leaves open.
    pub(crate) fn fill(&self, job: &mut NewJob) {
        let fill = |own: &mut Option<String>, option: &Option<String>| {
            if own.is_none() {
                own.clone_from(option);
            }
        };
        if job.models.is_empty() {
            if job.model.is_none() {
                job.models.clone_from(&self.models);
            }
            fill(&mut job.model, &self.model);
            if job.fallbacks.is_empty() && job.models.is_empty() {
                job.fallbacks.clone_from(&self.fallbacks);
            }
        }
        fill(&mut job.system, &self.system);
        fill(&mut job.session, &self.session);
        if job.account.is_none() {
            job.account.clone_from(&self.account);
        }
        if job.tags.is_empty() {
            job.tags.clone_from(&self.tags);
        }
        job.priority = job.priority.or(self.priority);
        if job.run_at.is_none() && job.delay.is_none() {
            job.run_at = self.run_at;
            job.delay = self.delay;
        }
        job.expires_at = job.expires_at.or(self.expires_at);
        job.timeout = job.timeout.or(self.timeout);
        job.max_attempts = job.max_attempts.or(self.max_attempts);
        job.delivery = job
            .delivery
            .or(self.at_most_once.then_some(Delivery::AtMostOnce));
        if job.webhook.is_none() {
            job.webhook = self.webhook.as_ref().map(|url| JobWebhook {
                url: url.clone(),
                events: Vec::new(),
            });
        }
        for (key, value) in &self.metadata {
            job.metadata
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
        for (key, value) in &self.params {
            if !job.params.contains_key(key) {
                job.params.insert(key.clone(), value.clone());
            }
        }
    }
}

fn fallback(text: &str) -> Result<NewFallback, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: JobOptions,
    }

    fn options(flags: &[&str]) -> JobOptions {
        Line::parse_from([&["x"], flags].concat()).options
    }

    #[test]
    fn every_flag_reaches_its_field() {
        let mut job = NewJob::default();
        options(&[
            "-m",
            "m1",
            "-s",
            "be brief",
            "-a",
            "main",
            "-t",
            "fast",
            "--tag",
            "eu",
            "-p",
            "-5",
            "--delay",
            "1h 30m",
            "--expires-at",
            "2026-11-23T20:00:00Z",
            "--timeout",
            "90s",
            "--max-attempts",
            "2",
            "--at-most-once",
            "--session",
            "s1",
            "--fallback",
            "{\"tags\": [\"us\"], \"after\": \"1m\"}",
            "--metadata",
            "team=a",
            "--param",
            "temperature=0.2",
        ])
        .fill(&mut job);
        assert_eq!(
            serde_json::to_value(&job).unwrap(),
            json!({
                "model": "m1", "system": "be brief", "account": "main", "tags": ["fast", "eu"],
                "priority": -5, "delay": "1h 30m", "expires_at": "2026-11-23T20:00:00.000Z",
                "timeout": "1m 30s", "max_attempts": 2, "delivery": "at_most_once",
                "fallbacks": [{"tags": ["us"], "after": "1m"}],
                "session": "s1", "metadata": {"team": "a"}, "params": {"temperature": 0.2},
            })
        );
    }

    #[test]
    fn what_a_job_says_itself_stands() {
        let own: NewJob = serde_json::from_value(json!({
            "prompt": "p", "model": "own", "tags": ["own"], "delay": "1s",
            "metadata": {"a": "own"}, "params": {"n": 1},
        }))
        .unwrap();
        let mut job = own.clone();
        options(&[
            "--model",
            "x",
            "--tag",
            "x",
            "--run-at",
            "2026-11-23T20:00:00Z",
            "--metadata",
            "a=x",
            "--metadata",
            "b=added",
            "--param",
            "n=2",
        ])
        .fill(&mut job);
        let mut expected = own;
        expected.metadata.insert("b".into(), "added".into());
        assert_eq!(job, expected);
    }

    #[test]
    fn models_stand_for_a_model() {
        let fill = |own: serde_json::Value| {
            let mut job: NewJob = serde_json::from_value(own).unwrap();
            options(&["--models", "m1,m2"]).fill(&mut job);
            (job.model, job.models)
        };
        let both = vec!["m1".to_owned(), "m2".to_owned()];
        assert_eq!(fill(json!({})), (None, both));
        assert_eq!(
            fill(json!({"model": "own"})),
            (Some("own".into()), Vec::new())
        );
        assert!(Line::try_parse_from(["x", "-m", "m1", "--models", "m2"]).is_err());
    }

    #[test]
    fn a_delay_and_a_time_exclude_each_other() {
        let line = ["x", "--delay", "1s", "--run-at", "2026-11-23T20:00:00Z"];
        assert!(Line::try_parse_from(line).is_err());
    }
}
