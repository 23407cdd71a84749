//! `sluice migrate`: the schema of the distributed database.

use std::path::Path;

use sluice_shared::{config::Config, telemetry};

use super::load_config;
use crate::{Exit, Failure, home::Home, output, roles};

pub(crate) async fn run(file: Option<&Path>, home: &Home) -> Result<Exit, Failure> {
    let config = load_config(file, home)?;
    Config::required_url("postgres.url", &config.postgres.url)?;
    let guard = telemetry::start(&config.log, &config.telemetry, "migrate")?;
    home.create()?;
    let first_key = roles::migrate(&config, home).await?;
    guard.shutdown();
    output::note("The database is up to date.");
    if first_key.is_some() {
        output::note(&format!(
            "The first admin key is in {}",
            home.admin_key_file().display()
        ));
    }
    Ok(Exit::Done)
}
