//! What names a checkpoint, the objects it lies in and the bytes it is made of. It never draws a random bit by itself.

use std::fmt;

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tidegate_core::Timestamp;
use tidegate_core::id::{Epoch, Name};
use tidegate_core::port::{Entropy, EntropyUnavailable};

/// The number of a slot in the log of a job, from 1, dense as it is written. A checkpoint's generation is the slot that its manifest
/// took; other entries take slots too, so the generations of checkpoints have holes. It never comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The first slot of a log.
    pub const FIRST: Self = Self(1);

    /// The slot after this one; `None` after 2^64 - 1, so that no number wraps.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which checkpoint: all of it stands in the checkpoint's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointId {
    /// Of which job.
    pub job: Name,
    /// In which writer's term.
    pub epoch: Epoch,
    /// In which slot of the job's log.
    pub generation: Generation,
    /// When its manifest was made, by the writer's clock for people. Nothing is ordered by it.
    pub created: Timestamp,
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} generation {} (epoch {}, {})", self.job, self.generation, self.epoch.get(), self.created)
    }
}

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of these digests, one after the other.
    pub(crate) fn of_all<'a>(digests: impl Iterator<Item = &'a Self>) -> Self {
        let mut sum = Sha256::new();
        digests.for_each(|digest| sum.update(digest.0));
        Self(sum.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// 128 random bits that a writer draws when it claims a term. They tell its entries from those of anybody else, also of one
/// that claims the same epoch with the same name at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Nonce([u8; 16]);

impl Nonce {
    pub(crate) fn draw(entropy: &dyn Entropy) -> Result<Self, EntropyUnavailable> {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    pub(crate) fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

/// A pack: an object that holds chunks one after the other, written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackId {
    /// Whose term wrote it.
    pub epoch: Epoch,
    /// Which checkpoint it was written for: the slot that was free when its save began.
    pub generation: Generation,
    /// Which of that term's packs it is, from 0.
    pub serial: u64,
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}", self.epoch.get(), self.generation, self.serial)
    }
}

impl PackId {
    /// Reads what `Display` writes, and nothing else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (epoch, rest) = text.split_once('-')?;
        let (generation, serial) = rest.split_once('-')?;
        let id = Self {
            epoch: Epoch::new(u64::from_str_radix(epoch, 16).ok()?),
            generation: Generation(generation.parse().ok()?),
            serial: serial.parse().ok()?,
        };
        (id.to_string() == text).then_some(id)
    }
}

/// Where the objects of one job lie.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) folder: Path,
    pub(crate) log: Path,
    pub(crate) packs: Path,
    pub(crate) readers: Path,
}

impl Layout {
    pub(crate) fn new(root: &Path, job: &Name) -> Self {
        let folder = root.clone().join(folder_name(job).as_str());
        Self {
            log: folder.clone().join("log"),
            packs: folder.clone().join("packs"),
            readers: folder.clone().join("readers"),
            folder,
        }
    }

    pub(crate) fn slot(&self, generation: Generation) -> Path {
        self.log.clone().join(format!("{:020}", generation.0))
    }

    pub(crate) fn pack(&self, pack: PackId) -> Path {
        self.packs.clone().join(pack.to_string())
    }

    pub(crate) fn reader(&self, id: &str) -> Path {
        self.readers.clone().join(id)
    }
}

/// The number in the name of a slot's object; `None` for what nobody here wrote.
pub(crate) fn slot_number(path: &Path) -> Option<Generation> {
    let name = path.filename()?;
    let number = (name.len() == 20).then(|| name.parse().ok()).flatten()?;
    (number > 0).then_some(Generation(number))
}

/// The folder of a job: its name where that is short and plain, every other byte as `=` and two hex digits; a long one as the
/// SHA-256 of the name. One name has one folder, and no two names share one, also where a file system ignores case. The name itself
/// stands in every entry of the log.
fn folder_name(job: &Name) -> String {
    use std::fmt::Write as _;
    let mut folder = String::with_capacity(job.as_str().len());
    for byte in job.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => folder.push(char::from(byte)),
            _ => write!(folder, "={byte:02x}").expect("a string takes every write"),
        }
    }
    if folder.len() > 200 { format!("=={}", Digest::of(job.as_str().as_bytes())) } else { folder }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn a_job_of_any_name_has_one_folder_inside_the_root() {
        let root = Path::from("root");
        assert_eq!(folder_name(&name("orders-by_key1")), "orders-by_key1");
        assert_eq!(folder_name(&name("../A")), "=2e=2e=2f=41");
        assert_ne!(folder_name(&name("a")), folder_name(&name("A")));
        let long = folder_name(&name(&"Z".repeat(255)));
        assert_eq!(long.len(), 66);
        assert_eq!(
            Layout::new(&root, &name("a/b")).slot(Generation(7)).as_ref(),
            "root/a=2fb/log/00000000000000000007"
        );
    }

    #[test]
    fn only_our_own_names_are_slots_and_packs() {
        assert_eq!(slot_number(&Path::from("x/log/00000000000000000007")), Some(Generation(7)));
        for foreign in
            ["7", "00000000000000000000", "0000000000000000000x", "000000000000000000007", "-0000000000000000007"]
        {
            assert_eq!(slot_number(&Path::from(foreign)), None, "{foreign}");
        }
        let pack = PackId { epoch: Epoch::new(31), generation: Generation(4), serial: 2 };
        assert_eq!(pack.to_string(), "000000000000001f-4-2");
        assert_eq!(PackId::parse("000000000000001f-4-2"), Some(pack));
        for foreign in [
            "",
            "1f-4-2",
            "000000000000001F-4-2",
            "000000000000001f-04-2",
            "000000000000001f-4",
            "000000000000001f-4-2-1",
        ] {
            assert_eq!(PackId::parse(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn no_two_jobs_share_a_folder(a in "[a-zA-Z=/.é]{1,20}", b in "[a-zA-Z=/.é]{1,20}") {
            prop_assert_eq!(a == b, folder_name(&name(&a)).to_lowercase() == folder_name(&name(&b)).to_lowercase());
        }
    }
}
