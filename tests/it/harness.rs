//! A Sluice to test: real processes of the binary, with data, ports and services of their own.
//!
//! The harness speaks of jobs, accounts and processes, and checks itself: a cluster that goes
//! leaves no process, no database, no virtual host and no file behind, and one that goes because
//! its test failed shows the logs first.

mod client;
mod cluster;
mod ports;
mod process;
mod services;
mod truth;
mod wait;

use std::sync::Once;

use uuid::Uuid;

pub(crate) use self::{
    client::{Answer, Client, prompt},
    cluster::{Cluster, Mode},
    ports::Port,
    process::{hermetic, processes_of},
    services::{Addresses, PrivateSet, Service, given},
    truth::Truth,
    wait::{PATIENCE, eventually, eventually_within, rest},
};

/// An HTTP client that goes where it is told, through no proxy.
pub(crate) fn http() -> reqwest::Client {
    static TLS: Once = Once::new();
    TLS.call_once(|| {
        // Set already only by a test that runs in the same process; then it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    builder
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

/// A number that no other call gives.
pub(crate) fn random() -> u64 {
    // Of a UUIDv7, the first half is mostly time and two bits of the second are fixed.
    Uuid::now_v7().as_u64_pair().1 & (u64::MAX >> 2)
}

/// A name that nothing else has.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", Uuid::now_v7().simple())
}

/// Runs each of these claims as a test in the embedded and in the distributed mode. A claim is
/// an async function of a [`Mode`].
macro_rules! on_every_mode {
    ($($claim:ident),+ $(,)?) => {
        mod embedded {
            $(
                #[tokio::test]
                async fn $claim() {
                    crate::harness::bounded(super::$claim(crate::harness::Mode::Embedded)).await;
                }
            )+
        }
        mod distributed {
            $(
                #[tokio::test]
                async fn $claim() {
                    crate::harness::bounded(super::$claim(crate::harness::Mode::Distributed)).await;
                }
            )+
        }
    };
}
pub(crate) use on_every_mode;

/// Runs a test, which fails when it takes longer than any of them may.
pub(crate) async fn bounded(test: impl Future<Output = ()>) {
    bounded_by(PATIENCE * 3, test).await;
}

/// Runs a test, which fails when it takes longer than `limit`.
pub(crate) async fn bounded_by(limit: std::time::Duration, test: impl Future<Output = ()>) {
    // Dropped while the panic unwinds, so that the cluster knows that its test has failed.
    let mut test = std::pin::pin!(test);
    if tokio::time::timeout(limit, test.as_mut()).await.is_err() {
        panic!("the test is not done after {limit:?}");
    }
}
