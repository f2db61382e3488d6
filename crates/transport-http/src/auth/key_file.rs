//! A JWKS file whose changes are noticed. A file that is broken or gone leaves the keys as they were, and says so in the
//! log once. It reads no file but its own.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use tidegate_core::{Clock, Moment};

use super::AuthConfigError;
use super::key::KeySet;

/// The largest JWKS file that is read.
pub(super) const KEY_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// How often the file is looked at, at most. A key that was taken out is good for this much longer.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct KeyFile {
    path: PathBuf,
    keys: ArcSwap<KeySet>,
    /// Whoever holds it reads the file; the others go on with the keys that there are.
    check: tokio::sync::Mutex<Check>,
}

struct Check {
    next_at: Moment,
    /// Of the content that was read last, good or broken. The content is compared, not the time of the change: two changes
    /// within one tick of the file system's clock have the same time.
    digest: Option<[u8; 32]>,
}

impl KeyFile {
    /// Reads the file now; at the start a broken one is an error.
    pub(super) fn open(path: PathBuf, clock: &dyn Clock) -> Result<Self, AuthConfigError> {
        let refused = |reason| AuthConfigError::KeyFile { path: path.clone(), reason };
        let content = read(&path).map_err(refused)?;
        let keys = KeySet::from_jwks(&content).map_err(refused)?;
        let check = Check { next_at: clock.now().after(CHECK_INTERVAL), digest: Some(digest(&content)) };
        Ok(Self { path, keys: ArcSwap::from_pointee(keys), check: tokio::sync::Mutex::new(check) })
    }

    pub(super) fn keys(&self) -> Arc<KeySet> {
        self.keys.load_full()
    }

    /// Reads the file again if it is time to. Never fails: the old keys stay.
    pub(super) async fn refresh(&self, clock: &dyn Clock) {
        let Ok(mut check) = self.check.try_lock() else { return };
        let now = clock.now();
        if now < check.next_at {
            return;
        }
        check.next_at = now.after(CHECK_INTERVAL);
        let path = self.path.clone();
        let content = match tokio::task::spawn_blocking(move || read(&path)).await {
            Ok(content) => content,
            Err(_) => Err("its reader panicked".into()),
        };
        let found = content.as_deref().ok().map(digest);
        if found == check.digest {
            return;
        }
        check.digest = found;
        match content.and_then(|content| KeySet::from_jwks(&content)) {
            Ok(keys) => {
                self.keys.store(Arc::new(keys));
                tracing::info!(path = %self.path.display(), "the JWKS file changed; its new keys are used");
            }
            Err(reason) => {
                tracing::warn!(path = %self.path.display(), %reason, "the JWKS file cannot be used; the old keys stay");
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Box<str>> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut content = Vec::new();
    file.take(KEY_FILE_MAX_BYTES + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() as u64 > KEY_FILE_MAX_BYTES {
        return Err(format!("it has more than {KEY_FILE_MAX_BYTES} bytes").into());
    }
    Ok(content)
}

fn digest(content: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(content.as_ref()).into()
}
