//! The sources whose changes become streams: those with a publication and a slot. It reads no change itself.

use std::sync::Arc;

use tidegate_cdc::source::{SourceService, SourceSpec};
use tidegate_core::limit::Bound;
use tidegate_core::port::ChangeSource;
use tidegate_lease::frozen::SettingsCell;
use tidegate_source_postgres::{ChangeConfig, PostgresChanges};

use super::{StartError, postgres};
use crate::config::{Config, Source};

/// Sources of changes, set up and not begun.
pub(super) type Changes = Vec<(SourceSpec, Arc<dyn ChangeSource>)>;

/// Sets the sources of changes up. A database need not be there.
pub(super) fn open(config: &Config, settings: &Arc<SettingsCell>) -> Result<Changes, StartError> {
    let mut changes: Changes = Vec::new();
    for (name, source) in &config.sources {
        let Source::Postgres { url, publication: Some(publication), slot: Some(slot), max_connections, ca } = source
        else {
            continue;
        };
        let row_bytes = {
            let settings = Arc::clone(settings);
            // As text, bytes are twice as long.
            Bound::live(move || settings.freeze().limits_row_max_bytes().saturating_mul(2))
        };
        let config = postgres(name.as_str(), url, *max_connections, ca.as_deref(), row_bytes)?;
        let change = ChangeConfig::new(slot.as_str(), publication.as_str());
        let opened = PostgresChanges::connect(config, change)
            .map_err(|source| StartError::SourceConfig { name: name.to_string(), source })?;
        let spec = SourceSpec::new(name.clone(), "postgres");
        changes.push((spec, Arc::new(opened)));
    }
    Ok(changes)
}

/// Begins to read them.
pub(super) fn start(sources: &SourceService, changes: Changes) -> Result<(), StartError> {
    for (spec, source) in changes {
        let name = spec.name.to_string();
        sources.start(spec, source).map_err(|source| StartError::Changes { name, source })?;
    }
    Ok(())
}
