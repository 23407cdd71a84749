//! The mapping as a table: a changed rule is a changed line in review.

use serde_json::json;

use super::{super::super::Sink, *};

const NOW: &str = "2026-11-23T20:00:00Z";

fn judged(lines: &[Value]) -> String {
    let (sink, _received) = Sink::new();
    let mut report = Report::new(Answer::new(1000, &sink));
    for line in lines {
        report.line(line.to_string().as_bytes()).unwrap();
    }
    match report.judge(1, "the end of standard error", NOW.parse().unwrap()) {
        Outcome::Completed(done) => format!("completed {:?} {:?}", done.text, done.usage),
        Outcome::Throttled {
            until, throttle, ..
        } => {
            let until = until.map_or_else(|| "-".into(), |until| until.to_string());
            format!("throttled {throttle:?} until {until}")
        }
        Outcome::Rejected { code, .. } => format!("rejected {code}"),
        Outcome::Failed { code, detail } => format!("failed {code}: {detail}"),
        other => other.name().to_owned(),
    }
}

fn failed(status: Option<u16>, words: &str) -> Value {
    json!({"type": "result", "subtype": "success", "is_error": true, "num_turns": 1,
        "api_error_status": status, "result": words})
}

fn limit(kind: &str, more: Value) -> Value {
    let mut info = json!({"status": "rejected", "resetsAt": 1_795_467_600, "rateLimitType": kind});
    info.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!({"type": "rate_limit_event", "rate_limit_info": info})
}

fn class(class: &str) -> Value {
    json!({"type": "assistant", "message": {}, "error": class})
}

/// What the real CLI showed, and the names that are in it (2.1.197).
#[test]
fn every_end_of_the_cli_has_its_outcome() {
    let success = |turns: u64| {
        json!({"type": "result", "subtype": "success", "is_error": false, "num_turns": turns,
            "result": "fine", "total_cost_usd": 0.000_105, "usage": {"input_tokens": 10,
            "cache_read_input_tokens": 5, "output_tokens": 7}})
    };
    let subtype = |subtype: &str| {
        json!({"type": "result", "subtype": subtype, "is_error": true, "num_turns": 1,
            "errors": ["why"]})
    };
    let terminal = |reason: &str| {
        let mut line = failed(None, "words");
        line["terminal_reason"] = json!(reason);
        line
    };
    let mut refusal = failed(None, "API Error: Claude Code is unable to respond");
    refusal["stop_reason"] = json!("refusal");
    let hit = "You've hit your session limit · resets 9:19am (UTC)";
    let none = json!({});
    let overage = json!({"isUsingOverage": true});
    let far = json!({"resetsAt": 99_795_467_600_u64});
    let cases = [
        vec![],
        vec![
            json!({"type": "system", "subtype": "init"}),
            json!("no object"),
        ],
        vec![success(1)],
        vec![success(0)],
        vec![limit("five_hour", overage.clone()), success(1)],
        vec![limit("five_hour", none.clone()), failed(Some(429), hit)],
        vec![limit("seven_day", none.clone()), failed(Some(429), hit)],
        vec![
            limit("seven_day_opus", none.clone()),
            failed(Some(429), hit),
        ],
        vec![limit("overage", none.clone()), failed(Some(429), hit)],
        vec![limit("five_hour", far), failed(Some(429), hit)],
        vec![
            limit("five_hour", overage),
            failed(None, "API Error: Connection was lost"),
        ],
        vec![
            limit("five_hour", none),
            failed(Some(400), "API Error: 400 bad"),
        ],
        vec![failed(Some(429), hit)],
        vec![failed(
            Some(429),
            "You've hit your Opus limit · resets Nov 27",
        )],
        vec![failed(Some(429), "You've hit your monthly spend limit")],
        vec![failed(Some(429), "You're out of extra usage")],
        vec![failed(
            Some(429),
            "API Error: Server is temporarily limiting requests (not your \
                                usage limit) · x",
        )],
        vec![failed(Some(429), "API Error: Request rejected (429) · x")],
        vec![failed(
            Some(429),
            "API Error: Extra usage is required for long context requests",
        )],
        vec![class("rate_limit"), failed(None, "API Error: x")],
        vec![failed(Some(401), "Invalid API key · Fix external API key")],
        vec![failed(
            Some(403),
            "Failed to authenticate. API Error: 403 x",
        )],
        vec![
            class("authentication_failed"),
            failed(None, "Not logged in · Please run /login"),
        ],
        vec![class("oauth_org_not_allowed"), failed(Some(403), "x")],
        vec![failed(
            Some(400),
            "API Error: 400 This organization has been disabled.",
        )],
        vec![failed(Some(400), "Credit balance is too low")],
        vec![class("billing_error"), failed(Some(400), "x")],
        vec![failed(
            Some(400),
            "API Error: 400 You have reached your specified API usage \
                                limits. You will regain access on 2026-12-01 at 00:00 UTC.",
        )],
        vec![failed(Some(529), "API Error: 529 Overloaded")],
        vec![failed(None, "API Error: Repeated 529 Overloaded errors")],
        vec![class("overloaded"), failed(None, "API Error: x")],
        vec![failed(Some(500), "API Error: 500 x")],
        vec![failed(Some(400), "API Error: 400 x")],
        vec![failed(
            Some(404),
            "There's an issue with the selected model (x)",
        )],
        vec![failed(Some(413), "Request too large (max 32MB)")],
        vec![terminal("prompt_too_long")],
        vec![terminal("blocking_limit")],
        vec![terminal("image_error")],
        vec![subtype("error_max_turns")],
        vec![subtype("error_max_budget_usd")],
        vec![subtype("error_during_execution")],
        vec![refusal],
        vec![failed(
            None,
            "API Error: Claude's response exceeded the 9 output token maximum",
        )],
        vec![failed(None, "API Error: Failed to parse JSON")],
        vec![failed(
            None,
            "API Error: empty or malformed response (HTTP 200)",
        )],
        vec![failed(
            None,
            "API Error: Unable to connect to API (ECONNRESET)",
        )],
        vec![failed(None, "Request timed out")],
        vec![failed(None, "API Error: Connection to the API was lost")],
        vec![failed(None, "something new")],
    ];
    let mut table = String::new();
    for lines in cases {
        let shown: Vec<String> = lines.iter().map(short).collect();
        table += &format!("{}\n    {}\n", shown.join(" + "), judged(&lines));
    }
    insta::assert_snapshot!(table);
}

/// A line in few words.
fn short(line: &Value) -> String {
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    match text("type") {
        "rate_limit_event" => {
            let info = &line["rate_limit_info"];
            let overage = if info["isUsingOverage"] == true {
                " with overage"
            } else {
                ""
            };
            format!("limit {}{overage}", info["rateLimitType"])
        }
        "assistant" => text("error").to_owned(),
        "result" => {
            let status = line["api_error_status"].as_u64();
            let parts = [
                status.map(|status| status.to_string()).unwrap_or_default(),
                text("result").chars().take(60).collect(),
                text("subtype").replace("success", ""),
                text("terminal_reason").to_owned(),
                text("stop_reason").to_owned(),
            ];
            let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            format!("result [{}]", parts.join(", "))
        }
        other => format!("[{other}]"),
    }
}
