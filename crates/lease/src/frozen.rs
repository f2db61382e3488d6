//! The settings that can change at run time, and the copy that a stream keeps. It never changes a copy that was given
//! out.
//!
//! No combination of settings is refused, because every one of them is enforced by itself and the tighter one wins:
//! `stream.max_per_principal` above `stream.max_global` means that one principal can use everything;
//! `stream.idle_timeout_ms` above `stream.snapshot.ttl_ms` is harmless, because a lease is renewed while its stream is
//! read. What must be seen together is set together: a patch is one step, and a copy holds all of it or nothing of it.

use parking_lot::RwLock;
use tidegate_core::limit::{SettingError, Settings};

/// The present settings. Share it by reference or `Arc`; reading copies some 150 bytes under a read lock.
#[derive(Debug, Default)]
pub struct SettingsCell {
    current: RwLock<Settings>,
}

/// A setting that has another value than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettingChange {
    /// Which.
    pub key: &'static str,
    /// Its value before.
    pub from: u64,
    /// Its value now.
    pub to: u64,
}

impl SettingsCell {
    /// A cell with these settings.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { current: RwLock::new(settings) }
    }

    /// The present settings as a copy of one moment. Who opens something takes one and uses nothing else until its end.
    #[must_use]
    pub fn freeze(&self) -> Settings {
        *self.current.read()
    }

    /// Sets all of these values in one step, or none: on an error nothing was changed. Where a key stands twice, the
    /// later value counts and the earlier is checked all the same. Gives what differs from before, each key once, in
    /// the order of [`Settings::ALL`]; a value that is what it was is no change.
    pub fn patch(&self, values: &[(&str, u64)]) -> Result<Vec<SettingChange>, SettingError> {
        let mut current = self.current.write();
        let before = *current;
        let mut after = before;
        for (key, value) in values {
            after.set(key, *value)?;
        }
        *current = after;
        drop(current);
        Ok(Settings::ALL
            .iter()
            .filter_map(|setting| {
                let (from, to) = (before.get(setting.key)?, after.get(setting.key)?);
                (from != to).then_some(SettingChange { key: setting.key, from, to })
            })
            .collect())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_running_stream_keeps_what_it_opened_with() {
        let cell = SettingsCell::default();
        let opened = cell.freeze();
        cell.patch(&[("stream.chunk.max_rows", 10)]).unwrap();
        assert_eq!(opened.stream_chunk_max_rows(), 1_000);
        assert_eq!(cell.freeze().stream_chunk_max_rows(), 10);
    }

    #[test]
    fn a_patch_with_one_bad_value_changes_nothing() {
        let cell = SettingsCell::default();
        for bad in [("stream.chunk.pages", 0), ("stream.chunk.pages", 65), ("stream.nonsense", 1), ("listen.http", 1)] {
            for patch in [[("stream.max_global", 7), bad], [bad, ("stream.max_global", 7)]] {
                assert!(cell.patch(&patch).is_err(), "{bad:?}");
                assert_eq!(cell.freeze(), Settings::default());
            }
        }
    }

    #[test]
    fn a_patch_tells_each_real_change_once() {
        let cell = SettingsCell::default();
        let changes = cell
            .patch(&[("stream.max_global", 9), ("stream.chunk.pages", 4), ("stream.max_global", 7)])
            .expect("all are in range");
        assert_eq!(changes, [SettingChange { key: "stream.max_global", from: 256, to: 7 }]);
        assert_eq!(cell.patch(&[]).unwrap(), []);
    }

    #[test]
    fn a_copy_holds_all_of_a_patch_or_nothing_of_it() {
        let cell = SettingsCell::default();
        cell.patch(&[("stream.max_global", 1), ("stream.max_per_principal", 1)]).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 1..=20_000 {
                    cell.patch(&[("stream.max_global", n), ("stream.max_per_principal", n)]).unwrap();
                }
            });
            while !writer.is_finished() {
                let seen = cell.freeze();
                assert_eq!(seen.stream_max_global(), seen.stream_max_per_principal());
            }
        });
    }

    proptest! {
        #[test]
        fn any_patch_gives_its_last_values_or_leaves_everything(
            values in proptest::collection::vec((0..Settings::ALL.len() + 1, any::<u64>(), any::<bool>()), 0..8)
        ) {
            let cell = SettingsCell::default();
            let patch: Vec<(&str, u64)> = values.iter().map(|(index, number, wild)| match Settings::ALL.get(*index) {
                Some(s) if !wild => (s.key, s.min + number % (s.max - s.min + 1)),
                Some(s) => (s.key, *number),
                None => ("no.such_setting", *number),
            }).collect();
            let before = cell.freeze();
            match cell.patch(&patch) {
                Err(_) => prop_assert_eq!(cell.freeze(), before),
                Ok(changes) => {
                    let after = cell.freeze();
                    for setting in Settings::ALL {
                        let last = patch.iter().rev().find(|(key, _)| *key == setting.key).map(|(_, value)| *value);
                        let (from, to) = (before.get(setting.key).unwrap(), after.get(setting.key).unwrap());
                        prop_assert_eq!(to, last.unwrap_or(from));
                        let told: Vec<_> = changes.iter().filter(|c| c.key == setting.key).collect();
                        prop_assert_eq!(told.len(), usize::from(from != to));
                    }
                }
            }
        }
    }
}
