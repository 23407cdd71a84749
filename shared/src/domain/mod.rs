//! The pure core: states, retries, lanes, strategies, windows and fair shares as functions of values.

pub mod account;
pub mod fair;
pub mod fallback;
pub mod forecast;
pub mod ids;
pub mod job;
pub mod lane;
pub mod outcome;
pub mod quota;
pub mod request;
pub mod retry;
pub mod route;
pub mod time;

pub use account::{Account, Cooldown, Standing};
pub use fallback::Step;
pub use ids::{AccountId, JobId};
pub use job::{Delivery, Event, Job, Refused, Settlement, State};
pub use lane::Lane;
pub use outcome::{Completion, Outcome, ThrottleKind, Usage};
pub use quota::Quota;
pub use request::{Message, Request, Role};
pub use time::{Span, Time};
