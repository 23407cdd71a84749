//! What travels on the broker. Every message carries a schema version; one of another version
//! is refused, never guessed at. No secret is ever in one.

use serde::{Deserialize, Serialize};

use crate::domain::{AccountId, Delivery, Figure, JobId, Outcome, Request, Span, Time};

/// The version of this schema.
pub const VERSION: u8 = 1;

/// One attempt of a job on its way to an account's workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    /// The schema's version.
    pub v: u8,
    /// Which job.
    pub job: JobId,
    /// The number of this attempt; it fences the result.
    pub attempt: u32,
    /// The account that it is bound to.
    pub account: AccountId,
    /// How often it may be handed to a provider.
    #[serde(default)]
    pub delivery: Delivery,
    /// How long the provider may take.
    pub timeout: Span,
    /// The client's session, for providers that can go on with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The W3C trace context that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What to do.
    pub request: Request,
}

/// What a worker says about one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
    /// The account it ran on.
    pub account: AccountId,
    /// The worker that speaks.
    pub worker: String,
    /// What it says.
    pub report: Report,
    /// What the provider has said about its own limits.
    #[serde(default, skip_serializing_if = "<[Figure]>::is_empty")]
    pub learned: Box<[Figure]>,
}

/// What there is to say about an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The provider is about to be called.
    Started {
        /// When.
        at: Time,
    },
    /// The worker answers for the attempt by renewal until this time; the delivery is acked.
    Leased {
        /// When the provider was called.
        started_at: Time,
        /// Until when.
        until: Time,
    },
    /// The attempt has ended.
    Finished {
        /// When the provider was called; `None` when it never was.
        started_at: Option<Time>,
        /// When it ended.
        finished_at: Time,
        /// How.
        outcome: Outcome,
    },
    /// A redelivery: another worker had it and is gone. It was not run again.
    Redelivered,
    /// The worker gives it back unrun.
    Returned {
        /// Why, for people.
        reason: String,
    },
}

/// Replies travel together when there are many at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replies {
    /// The schema's version.
    pub v: u8,
    /// In the order in which they were made.
    pub replies: Vec<Reply>,
}

/// What the API tells the workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "control", rename_all = "snake_case")]
pub enum Control {
    /// Stop this attempt.
    Cancel {
        /// Which job.
        job: JobId,
        /// Which attempt.
        attempt: u32,
    },
    /// The roll of accounts has changed.
    Accounts,
    /// Call an account's provider once, and say how it went in the live stream of this name.
    Test {
        /// The worker that is meant; the others do nothing.
        worker: String,
        /// The account.
        account: AccountId,
        /// The stream of the answer.
        test: JobId,
    },
    /// Ask an account's provider how many tokens a request has, and say it as a [`Counted`] in the
    /// live stream of this name.
    Count {
        /// The worker that is meant; the others do nothing.
        worker: String,
        /// The account.
        account: AccountId,
        /// The stream of the answer.
        answer: JobId,
        /// What is counted.
        request: Box<Request>,
    },
    /// Give back what is on its way to this account and not begun.
    Cooling {
        /// Which account.
        account: AccountId,
        /// For how long from now; no time at all when it takes jobs again. Not a point in time,
        /// because clocks differ.
        span: Span,
    },
}

/// What a provider says about the size of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// It has so many tokens.
    Tokens {
        /// Of input.
        input_tokens: u64,
    },
    /// It did not count.
    Refused {
        /// A stable code.
        code: String,
        /// The provider's words.
        detail: String,
        /// The request is at fault, so that asking again is of no use.
        rejected: bool,
    },
}

/// A control message with the schema's version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlMessage {
    /// The schema's version.
    pub v: u8,
    /// What to do.
    #[serde(flatten)]
    pub control: Control,
}

/// A message that ended in the dead-letter queue.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// What was to be run, if the body can be read.
    pub dispatch: Option<Dispatch>,
    /// Why the broker gave up on it.
    pub reason: String,
    /// The queue it came from.
    pub queue: String,
}
