//! The pure core: states, retries, lanes, strategies, windows and fair shares as functions of values.

pub mod account;
pub mod after;
pub mod cooldown;
pub mod egress;
pub mod fair;
pub mod fallback;
pub mod figure;
pub mod forecast;
pub mod ids;
pub mod job;
pub mod lane;
pub mod ledger;
pub mod outcome;
pub mod quota;
pub mod request;
pub mod retry;
pub mod route;
pub mod time;
pub mod webhook;
pub mod window;

pub use account::{Account, Standing};
pub use after::{After, OnParentFailure};
pub use cooldown::{Cause, Cooldown, Cooldowns, Gate, Heard};
pub use egress::Egress;
pub use fallback::Step;
pub use figure::Figure;
pub use ids::{AccountId, BatchId, JobId};
pub use job::{Delivery, Event, Job, Refused, Settlement, State};
pub use lane::Lane;
pub use ledger::{Call, Charge, Ledger, Present, Steady};
pub use outcome::{Completion, Outcome, ThrottleKind, Usage};
pub use quota::Quota;
pub use request::{Message, Request, Role};
pub use time::{Span, Time};
pub use webhook::EventKind;
pub use window::{Allowance, Amounts, Kind, Limit, Needs, Window};
