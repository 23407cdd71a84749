//! An answer as it is written: server-sent events by name, from `message_start` to `message_stop`.

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
pub(super) async fn answer(mut follow: Follow, names: Names) -> Result<Response, Fault> {
    let first = sse::first(&mut follow).await?;
    Ok(sse::answer(follow, first, Events { names }))
}

struct Events {
    names: Names,
}

impl Teller for Events {
    fn begin(&mut self, events: &mut VecDeque<Event>) {
        let message = answer::start(&self.names);
        events.push_back(event("message_start", json!({ "message": message })));
        let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
        events.push_back(event("content_block_start", block));
    }

    fn say(&mut self, said: Said, events: &mut VecDeque<Event>) {
        match said {
            Said::Text(text) => delta(&text, events),
            Said::End(rest, answer) => {
                delta(&rest, events);
                events.push_back(event("content_block_stop", json!({"index": 0})));
                let ending = json!({
                    "delta": {
                        "stop_reason": answer::stop_reason(&answer),
                        "stop_sequence": null,
                    },
                    "usage": answer::usage(answer.usage),
                });
                events.push_back(event("message_delta", ending));
                events.push_back(event("message_stop", json!({})));
            }
        }
    }

    fn fail(&mut self, fault: Fault, events: &mut VecDeque<Event>) {
        let body = Refusal(fault).body();
        events.push_back(Event::default().event("error").data(body.to_string()));
    }
}

fn delta(text: &str, events: &mut VecDeque<Event>) {
    if !text.is_empty() {
        let delta = json!({"index": 0, "delta": {"type": "text_delta", "text": text}});
        events.push_back(event("content_block_delta", delta));
    }
}

/// An event, which says its own name once more.
fn event(name: &str, mut data: Value) -> Event {
    data["type"] = name.into();
    Event::default().event(name).data(data.to_string())
}
