//! An answer as it is written: server-sent events without names, and `[DONE]` at the end.

use std::collections::VecDeque;

use axum::response::{Response, sse::Event};
use serde_json::{Value, json};

use super::{
    Refusal,
    answer::{self, Names},
};
use crate::http::gateway::{
    fault::Fault,
    live::{Follow, Said},
    sse::{self, Teller},
};

/// Begins to answer. What goes wrong before the first text is an error like any other.
pub(super) async fn answer(
    mut follow: Follow,
    names: Names,
    include_usage: bool,
) -> Result<Response, Fault> {
    let first = sse::first(&mut follow).await?;
    let teller = Chunks {
        names,
        include_usage,
    };
    Ok(sse::answer(follow, first, teller))
}

struct Chunks {
    names: Names,
    include_usage: bool,
}

impl Chunks {
    fn text(&self, text: String, events: &mut VecDeque<Event>) {
        if !text.is_empty() {
            let delta = json!({ "content": text });
            events.push_back(data(&answer::chunk(&self.names, &delta, None)));
        }
    }
}

impl Teller for Chunks {
    fn begin(&mut self, events: &mut VecDeque<Event>) {
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        events.push_back(data(&answer::chunk(&self.names, &delta, None)));
    }

    fn say(&mut self, said: Said, events: &mut VecDeque<Event>) {
        match said {
            Said::Text(text) => self.text(text, events),
            Said::End(rest, answer) => {
                self.text(rest, events);
                let reason = answer::finish_reason(&answer);
                events.push_back(data(&answer::chunk(&self.names, &json!({}), Some(reason))));
                if self.include_usage {
                    events.push_back(data(&answer::usage_chunk(&self.names, &answer)));
                }
                events.push_back(Event::default().data("[DONE]"));
            }
        }
    }

    fn fail(&mut self, fault: Fault, events: &mut VecDeque<Event>) {
        events.push_back(data(&Refusal(fault).body()));
    }
}

fn data(value: &Value) -> Event {
    Event::default().data(value.to_string())
}
