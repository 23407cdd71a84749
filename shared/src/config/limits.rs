//! The limits of an account, as the configuration gives them: one object or a list of them, each
//! with a window and one or more amounts.

use serde::Deserialize;
use serde_json::Value;

use crate::domain::{Kind, Limit, Span};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimit {
    requests: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    /// In US dollars.
    cost: Option<f64>,
    window: Span,
}

/// The shortest window: below it, what a call takes on its way is all there is.
const SHORTEST: Span = Span::seconds(1);
/// The longest window.
const LONGEST: Span = Span::seconds(366 * 86_400);

/// Reads `{ requests = 100, window = "1h" }`, or a list of such.
pub(super) fn read(value: Value) -> Result<Vec<Limit>, String> {
    let raw: Vec<RawLimit> = match value {
        Value::Array(_) => serde_path_to_error::deserialize(value),
        one => serde_path_to_error::deserialize(Value::Array(vec![one])),
    }
    .map_err(|error| format!("limits: {error}"))?;
    let mut limits: Vec<Limit> = Vec::new();
    for raw in raw {
        let window = raw.window;
        if window < SHORTEST || window > LONGEST {
            return Err(format!(
                "limits: window {window} is not from 1s to 366 days"
            ));
        }
        let amounts = [
            (Kind::Requests, raw.requests),
            (Kind::InputTokens, raw.input_tokens),
            (Kind::OutputTokens, raw.output_tokens),
            (Kind::Cost, raw.cost.map(microusd).transpose()?),
        ];
        let before = limits.len();
        for (kind, most) in amounts {
            let Some(most) = most else { continue };
            if most == 0 {
                return Err(format!("limits: {} must be more than 0", kind.as_str()));
            }
            if limits
                .iter()
                .any(|known| known.kind == kind && known.window == window)
            {
                return Err(format!(
                    "limits: {} per {window} is given twice",
                    kind.as_str()
                ));
            }
            limits.push(Limit { kind, most, window });
        }
        if limits.len() == before {
            return Err(
                "limits: give requests, input_tokens, output_tokens or cost with each window"
                    .into(),
            );
        }
    }
    Ok(limits)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be in range"
)]
fn microusd(dollars: f64) -> Result<u64, String> {
    let micro = (dollars * 1e6).round();
    if (1.0..1e15).contains(&micro) {
        Ok(micro as u64)
    } else {
        Err(format!(
            "limits: cost {dollars} is not an amount of US dollars"
        ))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn limits(text: &str) -> Result<String, String> {
        let text = format!("[accounts.a]\nprovider = \"simulated\"\nlimits = {text}");
        let config = Config::from_toml(&text).map_err(|error| error.to_string())?;
        let limits = &config.accounts["a"].limits;
        let line = |limit: &crate::domain::Limit| {
            format!(
                "{} {} per {}",
                limit.most,
                limit.kind.as_str(),
                limit.window
            )
        };
        Ok(limits.iter().map(line).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn one_limit_or_many_are_read() {
        assert_eq!(
            limits("{ requests = 100, window = \"1h\" }").unwrap(),
            "100 requests per 1h"
        );
        assert_eq!(
            limits(
                "[{ requests = 5, output_tokens = 8000, window = \"1m\" }, \
                 { cost = 2.5, window = \"7d\" }]"
            )
            .unwrap(),
            "5 requests per 1m, 8000 output_tokens per 1m, 2500000 cost per 7days"
        );
    }

    #[test]
    fn what_cannot_be_a_limit_says_why() {
        for (text, why) in [
            ("{ requests = 100 }", "window"),
            ("{ window = \"1h\" }", "give requests"),
            ("{ requests = 0, window = \"1h\" }", "more than 0"),
            ("{ requests = -1, window = \"1h\" }", "requests"),
            ("{ requests = 1, window = \"10ms\" }", "1s to 366 days"),
            ("{ cost = 0.0, window = \"1h\" }", "US dollars"),
            ("{ request = 1, window = \"1h\" }", "request"),
            (
                "[{ requests = 1, window = \"60s\" }, { requests = 2, window = \"1m\" }]",
                "twice",
            ),
        ] {
            let error = limits(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
