//! A response as it is written: numbered events by name, from `response.created` to
//! `response.completed`.

use std::collections::VecDeque;

use axum::response::{Response, sse::Event};
use serde_json::{Value, json};
use sluice_shared::{
    clock,
    domain::{Completion, JobId, Time},
};

use super::answer::{self, Known};
use crate::http::gateway::{
    fault::Fault,
    live::{Follow, Said},
    sse::{self, Teller},
};

/// Begins to answer. What goes wrong before the first text is an error like any other.
pub(super) async fn answer(mut follow: Follow, known: Known) -> Result<Response, Fault> {
    let first = sse::first(&mut follow).await?;
    let teller = Events {
        id: follow.running.job,
        since: follow.running.since,
        known,
        number: 0,
    };
    Ok(sse::answer(follow, first, teller))
}

struct Events {
    id: JobId,
    since: Time,
    known: Known,
    /// Of the next event.
    number: u64,
}

impl Events {
    fn push(&mut self, name: &str, mut data: Value, events: &mut VecDeque<Event>) {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        events.push_back(Event::default().event(name).data(data.to_string()));
    }

    /// An event about the one piece of text of the one message.
    fn of_text(&mut self, name: &str, mut data: Value, events: &mut VecDeque<Event>) {
        data["item_id"] = answer::message_id(self.id).into();
        data["output_index"] = 0.into();
        data["content_index"] = 0.into();
        self.push(name, data, events);
    }

    fn delta(&mut self, text: &str, events: &mut VecDeque<Event>) {
        if !text.is_empty() {
            let data = json!({"delta": text, "logprobs": []});
            self.of_text("response.output_text.delta", data, events);
        }
    }

    fn end(&mut self, whole: &Completion, events: &mut VecDeque<Event>) {
        let text = json!({"text": whole.text, "logprobs": []});
        self.of_text("response.output_text.done", text, events);
        let part = json!({"part": answer::part(&whole.text)});
        self.of_text("response.content_part.done", part, events);
        let item = json!({"output_index": 0, "item": answer::message(self.id, whole)});
        self.push("response.output_item.done", item, events);
        let response = answer::ended(self.id, self.since, clock::now(), &self.known, whole);
        let name = match response["status"].as_str() {
            Some("incomplete") => "response.incomplete",
            _ => "response.completed",
        };
        self.push(name, json!({ "response": response }), events);
    }
}

impl Teller for Events {
    fn begin(&mut self, events: &mut VecDeque<Event>) {
        let response = answer::begun(self.id, self.since, &self.known, "in_progress");
        for name in ["response.created", "response.in_progress"] {
            self.push(name, json!({ "response": response }), events);
        }
        let item = json!({
            "id": answer::message_id(self.id),
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        });
        let item = json!({"output_index": 0, "item": item});
        self.push("response.output_item.added", item, events);
        let part = json!({"part": answer::part("")});
        self.of_text("response.content_part.added", part, events);
    }

    fn say(&mut self, said: Said, events: &mut VecDeque<Event>) {
        match said {
            Said::Text(text) => self.delta(&text, events),
            Said::End(rest, whole) => {
                self.delta(&rest, events);
                self.end(&whole, events);
            }
        }
    }

    fn fail(&mut self, fault: Fault, events: &mut VecDeque<Event>) {
        let mut response = answer::begun(self.id, self.since, &self.known, "failed");
        response["error"] = json!({"code": "server_error", "message": fault.message});
        self.push("response.failed", json!({ "response": response }), events);
    }
}
