//! Logs, traces and metrics, set up once at start.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::config::{Log, LogFormat, Telemetry};

/// Upper bounds of the duration histograms, in seconds.
const DURATION_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
    600.0,
];

/// Keeps what must be flushed at the end.
#[derive(Debug, Default)]
pub struct Guard {
    tracer: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends what is left. Call it last.
    pub fn shutdown(self) {
        if let Some(tracer) = self.tracer
            && let Err(error) = tracer.shutdown()
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Sets up logs on standard error, and traces when an endpoint is configured.
///
/// # Errors
/// When the log filter or the endpoint does not parse.
pub fn start(log: &Log, telemetry: &Telemetry, role: &'static str) -> anyhow::Result<Guard> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|error| anyhow::anyhow!("configuration: log.level: {error}"))?
        // What drivers say below this level may hold addresses with passwords.
        .add_directive("sqlx=warn".parse()?)
        .add_directive("sea_orm=warn".parse()?)
        .add_directive("sea_orm_migration=warn".parse()?)
        .add_directive("lapin=error".parse()?);
    let lines = match log.format {
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
        LogFormat::Pretty => tracing_subscriber::fmt::layer()
            .compact()
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .boxed(),
    };
    let mut guard = Guard::default();
    let spans = match telemetry.otlp_endpoint.as_str() {
        "" => None,
        endpoint => {
            opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
            let exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_http()
                .with_endpoint(endpoint)
                .build()
                .map_err(|error| {
                    anyhow::anyhow!("configuration: telemetry.otlp_endpoint: {error}")
                })?;
            let provider = SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(
                    opentelemetry_sdk::Resource::builder()
                        .with_service_name(format!("sluice-{role}"))
                        .build(),
                )
                .build();
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("sluice"));
            guard.tracer = Some(provider);
            Some(layer)
        }
    };
    Registry::default()
        .with(spans)
        .with(lines.with_filter(filter))
        .try_init()?;
    Ok(guard)
}

/// What keeps metrics and renders them; nothing is recorded in it by itself.
///
/// # Errors
/// None that a configuration could bring about.
pub fn recorder() -> anyhow::Result<PrometheusRecorder> {
    let builder = PrometheusBuilder::new();
    let builder =
        builder.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &DURATION_BUCKETS)?;
    Ok(builder.build_recorder())
}

/// Makes the process's metrics, to be rendered for Prometheus.
///
/// # Errors
/// When there are some already.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|_| anyhow::anyhow!("this process has metrics already"))?;
    Ok(handle)
}
