//! `[checkpoints]`: where the checkpoints of stream processors lie that the server shows. It opens nothing.

use super::read::Section;
use super::{Cold, object};

/// Where in the data directory they lie unless told otherwise.
pub(super) const DEFAULT_FOLDER: &str = "checkpoints";

/// The place as it was written; the inner `None` = it was not.
#[allow(clippy::option_option, reason = "what is wrong and what is absent are two things")]
pub(super) fn read(root: &Section<'_>) -> Option<Option<Cold>> {
    let Some(node) = root.get("checkpoints") else { return Some(None) };
    let section = node.section()?;
    let store = match section.get("store") {
        Some(node) => object::place(&node, &section).map(Some),
        None => Some(None),
    };
    if section.get("s3").is_some() && !matches!(store, None | Some(Some(Cold::S3(_)))) {
        section.refuse_key("s3", "has an effect only with store = \"s3://bucket/prefix\"");
    }
    section.finish();
    store
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{Cold, Config, ConfigError, Flags, Inputs, load};

    fn config(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut flags = Flags::default();
        for (key, value) in pairs {
            flags.set("--set", key, *value);
        }
        load(&Inputs { flags, ..Inputs::default() }).map(|loaded| loaded.config)
    }

    #[test]
    fn checkpoints_lie_in_the_data_directory_unless_told_otherwise() {
        let of = |pairs: &[(&str, &str)]| config(pairs).unwrap().checkpoints;
        assert_eq!(of(&[("data_dir", "/srv/t")]), Cold::Directory(Path::new("/srv/t/checkpoints").into()));
        let own = [("checkpoints.store", "file:///var/my%20jobs")];
        assert_eq!(of(&own), Cold::Directory(Path::new("/var/my jobs").into()));
        let entries = config(&own).unwrap().entries();
        assert!(entries.contains(&("checkpoints.store".into(), "/var/my jobs".into())), "{entries:?}");
    }

    #[test]
    fn a_bucket_of_checkpoints_has_its_own_settings_and_its_key_is_never_shown() {
        let config = config(&[
            ("checkpoints.store", "s3://my-bucket/jobs"),
            ("checkpoints.s3.region", "eu-central-1"),
            ("checkpoints.s3.access_key_id", "me"),
            ("checkpoints.s3.secret_access_key", "secret"),
        ])
        .unwrap();
        let Cold::S3(s3) = &config.checkpoints else { panic!("{:?}", config.checkpoints) };
        assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("my-bucket", "jobs"));
        let entries = config.entries();
        for (key, value) in [
            ("checkpoints.store", "s3://my-bucket/jobs"),
            ("checkpoints.s3.region", "eu-central-1"),
            ("checkpoints.s3.secret_access_key", "***"),
        ] {
            assert!(entries.contains(&(key.into(), value.into())), "{key}: {entries:?}");
        }
        assert!(matches!(config.objects.cold, Cold::Directory(_)));
    }

    #[test]
    fn a_place_that_is_none_is_refused_with_its_key() {
        for (pairs, key) in [
            (&[("checkpoints.store", "/plain")][..], "checkpoints.store"),
            (&[("checkpoints.store", "file://host/x")], "checkpoints.store"),
            (&[("checkpoints.s3.region", "x")], "checkpoints.s3"),
            (&[("checkpoints.cold", "file:///x")], "checkpoints.cold"),
        ] {
            let error = config(pairs).unwrap_err().to_string();
            assert!(error.contains(key), "{pairs:?}: {error}");
        }
    }
}
