//! From samples to figures.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Latency in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Latency {
    /// Half of the samples are at most this.
    pub(crate) p50_ms: f64,
    /// 99 in 100 are at most this.
    pub(crate) p99_ms: f64,
}

impl Latency {
    /// The percentiles of these samples, by nearest rank.
    pub(crate) fn of(mut samples: Vec<Duration>) -> Result<Self> {
        samples.sort_unstable();
        let at = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100).saturating_sub(1);
            let sample = samples.get(rank).context("no sample of latency")?;
            anyhow::Ok(sample.as_secs_f64() * 1000.0)
        };
        Ok(Self {
            p50_ms: at(50)?,
            p99_ms: at(99)?,
        })
    }
}

/// So many in so much time.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(crate) fn per_second(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// The median, the lowest and the highest of some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub(crate) median: f64,
    /// The lowest.
    pub(crate) low: f64,
    /// The highest.
    pub(crate) high: f64,
}

impl Spread {
    /// Of nothing there is none.
    pub(crate) fn of(rounds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_unstable_by(f64::total_cmp);
        let (&low, &high) = (rounds.first()?, rounds.last()?);
        let (upper, lower) = (
            rounds.get(rounds.len() / 2)?,
            rounds.get((rounds.len() - 1) / 2)?,
        );
        Some(Self {
            median: f64::midpoint(*upper, *lower),
            low,
            high,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let samples = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(
            Latency::of(samples).unwrap(),
            Latency {
                p50_ms: 100.0,
                p99_ms: 198.0
            }
        );
        assert!(Latency::of(vec![]).is_err());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!(
            spread,
            Some(Spread {
                median: 2.0,
                low: 1.0,
                high: 3.0
            })
        );
        assert_eq!(
            Spread::of([1.0, 2.0]).map(|spread| spread.median),
            Some(1.5)
        );
        assert_eq!(Spread::of([]), None);
    }
}
