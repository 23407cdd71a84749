//! No model at all: made-up answers with made-up latency and faults, the same for the same seed,
//! job and attempt. It is the no-op job of the benchmarks too, so that without a latency it
//! touches no timer.

use std::time::Duration;

use sluice_shared::{
    config,
    domain::{Completion, JobId, Outcome, ThrottleKind, Usage},
};

use super::{Prompt, Sink, answer::Answer, stop::Stop};

/// At most this many deltas an answer, spread over its latency.
const DELTAS: usize = 20;
const WORDS: [&str; 16] = [
    "the", "water", "rises", "slowly", "behind", "a", "gate", "until", "someone", "turns", "its",
    "wheel", "and", "lets", "it", "through",
];

/// A provider without a model.
#[derive(Debug)]
pub struct Simulated {
    settings: config::Simulated,
    max_output_bytes: usize,
}

impl Simulated {
    pub(super) fn new(settings: &config::Simulated, max_output_bytes: usize) -> Self {
        Self {
            settings: settings.clone(),
            max_output_bytes,
        }
    }

    pub(super) async fn run(&self, prompt: Prompt<'_>, stop: Stop<'_>, sink: &Sink) -> Outcome {
        if stop.is_cancelled() {
            return Outcome::Cancelled;
        }
        let mut chance = Chance::new(self.settings.seed, prompt.job, prompt.attempt);
        let jitter = self.settings.latency_jitter.0.mul_f64(chance.next_share());
        let latency = self.settings.latency.0.saturating_add(jitter);
        if let Some(fault) = self.fault(chance.next_share()) {
            return wait(stop, latency).await.unwrap_or(fault);
        }
        let asked = prompt.request.as_text();
        let input_tokens = words(&asked);
        let text = match self.settings.tokens {
            0 => asked,
            tokens => (0..tokens)
                .map(|_| chance.next_word())
                .collect::<Vec<_>>()
                .join(" "),
        };
        let usage = Usage {
            input_tokens,
            output_tokens: words(&text),
            ..Usage::default()
        };
        let mut answer = Answer::new(self.max_output_bytes, sink);
        let deltas = if latency.is_zero() {
            vec![text.as_str()]
        } else {
            split(&text)
        };
        let pause = latency / u32::try_from(deltas.len().max(1)).unwrap_or(1);
        for delta in deltas {
            if let Some(ended) = wait(stop, pause).await {
                return ended;
            }
            if let Err(ended) = answer.push(delta) {
                return ended;
            }
        }
        Outcome::Completed(Completion {
            text: answer.into_text(),
            model: Some(
                prompt
                    .request
                    .model
                    .clone()
                    .unwrap_or_else(|| "simulated".into()),
            ),
            stop_reason: Some("end_turn".into()),
            usage,
        })
    }

    /// The fault of an attempt whose share is `share`, if it has one.
    fn fault(&self, share: f64) -> Option<Outcome> {
        let faults = &self.settings.faults;
        let detail = || "made up, as configured".to_owned();
        let mut upto = faults.failed;
        if share < upto {
            return Some(Outcome::failed("simulated", detail()));
        }
        upto += faults.throttled;
        if share < upto {
            let throttle = ThrottleKind::Burst;
            return Some(Outcome::Throttled {
                until: None,
                throttle,
                detail: detail(),
            });
        }
        upto += faults.overloaded;
        if share < upto {
            return Some(Outcome::Overloaded {
                until: None,
                detail: detail(),
            });
        }
        upto += faults.rejected;
        (share < upto).then(|| Outcome::rejected("simulated", detail()))
    }
}

/// Waits; `Some` is what ended it early. An empty wait does not even yield.
async fn wait(stop: Stop<'_>, time: Duration) -> Option<Outcome> {
    if time.is_zero() {
        return None;
    }
    stop.race(tokio::time::sleep(time)).await.err()
}

fn words(text: &str) -> u64 {
    u64::try_from(text.split_whitespace().count()).unwrap_or(u64::MAX)
}

/// `text` in at most [`DELTAS`] pieces; at least one, so that an empty answer has its latency too.
fn split(text: &str) -> Vec<&str> {
    let piece = text.len().div_ceil(DELTAS).max(1);
    let mut pieces = Vec::new();
    let mut rest = text;
    loop {
        let end = (piece..rest.len()).find(|end| rest.is_char_boundary(*end));
        let (first, tail) = rest.split_at(end.unwrap_or(rest.len()));
        pieces.push(first);
        rest = tail;
        if rest.is_empty() {
            return pieces;
        }
    }
}

/// What looks like chance: SplitMix64 over the seed, the job and the attempt.
struct Chance(u64);

impl Chance {
    fn new(seed: u64, job: JobId, attempt: u32) -> Self {
        let (high, low) = job.0.as_u64_pair();
        let mut chance = Self(seed);
        for part in [high, low, u64::from(attempt)] {
            chance.0 = chance.next() ^ part;
        }
        chance
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `[0, 1)`.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
    fn next_share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next_word(&mut self) -> &'static str {
        let index = usize::try_from(self.next() >> 60).unwrap_or(0);
        WORDS.get(index).copied().unwrap_or("water")
    }
}
