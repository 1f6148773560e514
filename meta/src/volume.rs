//! Records of volumes, and the decisions over them as pure functions: names, sizes, the next epoch.
//!
//! [`Catalog`](crate::Catalog) stores what is decided here in guarded transactions; ids and times come from its caller.

use std::fmt;
use std::str::FromStr;

use hafs_protocol::{Epoch, Lineage, Lsn, Member, Pos, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::MetaError;
use crate::record::Record;

/// Longest name of a volume, bytes: that of a DNS label, so that a name can become part of a host name.
pub const NAME_BYTES_MAX: usize = 63;
/// Smallest size of a volume: room for its root directory and a few files.
pub const SIZE_BYTES_MIN: u64 = 1 << 20;
/// Largest size of a volume: 1 EiB. Sums of sizes stay far below 2^64.
pub const SIZE_BYTES_MAX: u64 = 1 << 60;

/// What people call a volume: 1 to 63 of `a-z`, `0-9`, and inside also `-`, `_`, `.`.
///
/// Every such name is a file name, a Docker volume name, and stands in `/proc/mounts` and `/etc/fstab` as it is. A name
/// that reads as a uuid is refused, so that a command's argument is either a name or an id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = MetaError;

    fn from_str(name: &str) -> Result<Self, MetaError> {
        let invalid = |reason| {
            Err(MetaError::InvalidName {
                name: name.to_owned(),
                reason,
            })
        };
        let outer = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = name.as_bytes();
        let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
            return invalid("it is empty");
        };
        if bytes.len() > NAME_BYTES_MAX {
            return invalid("it is longer than 63 characters");
        }
        if !bytes
            .iter()
            .all(|&c| outer(c) || matches!(c, b'-' | b'_' | b'.'))
        {
            return invalid("only a-z, 0-9, '-', '_' and '.' are allowed");
        }
        if !outer(first) || !outer(last) {
            return invalid("it must begin and end with a letter or digit");
        }
        if Uuid::try_parse(name).is_ok() {
            return invalid("it reads as a volume id");
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for VolumeName {
    type Error = MetaError;

    fn try_from(name: String) -> Result<Self, MetaError> {
        name.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a volume is used for: sets chunk size, inline threshold and readahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Not said.
    #[default]
    Auto,
    /// Small random overwrites, each synced.
    Database,
    /// Large files, written and read in order.
    Sequential,
    /// Many small files.
    SmallFiles,
}

impl Profile {
    /// All of them, as text: what a command accepts.
    pub const NAMES: [&'static str; 4] = ["auto", "database", "sequential", "small-files"];

    /// As text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Database => "database",
            Self::Sequential => "sequential",
            Self::SmallFiles => "small-files",
        }
    }
}

impl FromStr for Profile {
    type Err = MetaError;

    fn from_str(text: &str) -> Result<Self, MetaError> {
        [
            Self::Auto,
            Self::Database,
            Self::Sequential,
            Self::SmallFiles,
        ]
        .into_iter()
        .find(|profile| profile.as_str() == text)
        .ok_or_else(|| MetaError::InvalidProfile {
            profile: text.to_owned(),
        })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the user wants of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Its name.
    pub name: VolumeName,
    /// How much it may hold, bytes: [`SIZE_BYTES_MIN`] to [`SIZE_BYTES_MAX`].
    pub size_bytes: u64,
    /// What it is used for.
    pub profile: Profile,
    /// How many copies are wanted.
    pub copies: u8,
    /// Whether the kernel may gather writes: off, a full volume is told by write(2) itself. Since version 2.
    #[serde(default = "on", skip_serializing_if = "is_on")]
    pub writeback: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when it is being deleted: its data may be gone already, and only deleting goes on.
    pub deleting_since: Option<Timestamp>,
}

impl Record for VolumeSpec {
    const KIND: &'static str = "volume-spec";
    const VERSION: u32 = 2;

    fn version(&self) -> u32 {
        if self.writeback { 1 } else { 2 }
    }
}

const fn on() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_on(on: &bool) -> bool {
    *on
}

/// A change of what the user wants; `None` leaves a setting as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeChange {
    /// How much it may hold, bytes.
    pub size_bytes: Option<u64>,
    /// What it is used for.
    pub profile: Option<Profile>,
    /// Whether the kernel may gather writes.
    pub writeback: Option<bool>,
}

impl VolumeChange {
    /// What becomes of `spec`.
    ///
    /// # Errors
    /// [`MetaError::InvalidSize`].
    pub fn of(&self, spec: &VolumeSpec) -> Result<VolumeSpec, MetaError> {
        let changed = VolumeSpec {
            size_bytes: self.size_bytes.unwrap_or(spec.size_bytes),
            profile: self.profile.unwrap_or(spec.profile),
            writeback: self.writeback.unwrap_or(spec.writeback),
            ..spec.clone()
        };
        check_size(changed.size_bytes)?;
        Ok(changed)
    }
}

impl VolumeSpec {
    /// Whether such a volume can be made in a cluster of one node.
    ///
    /// # Errors
    /// [`MetaError::InvalidSize`], [`MetaError::InvalidCopies`].
    pub fn check(&self) -> Result<(), MetaError> {
        check_size(self.size_bytes)?;
        match self.copies {
            1 => Ok(()),
            copies => Err(MetaError::InvalidCopies { copies }),
        }
    }
}

pub(crate) fn check_size(size_bytes: u64) -> Result<(), MetaError> {
    if (SIZE_BYTES_MIN..=SIZE_BYTES_MAX).contains(&size_bytes) {
        Ok(())
    } else {
        Err(MetaError::InvalidSize { size_bytes })
    }
}

/// Who holds a volume, and who reigns: the one record whose changes need the whole cluster's agreement. Its revision in the
/// store (`mod_rev`) is its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// Its history; another one after a forced promotion.
    pub lineage: Lineage,
    /// The current reign. 0: nobody has reigned, so the first store may not have been made yet.
    pub epoch: Epoch,
    /// Who reigns. `None` only in epoch 0.
    pub primary: Option<Member>,
    /// Who must hold a record before it is committed. Never empty.
    pub in_sync: Vec<Member>,
    /// Copies that are catching up.
    pub learners: Vec<Member>,
    /// Drawn by whoever proposed this version, so that it knows its own.
    pub proposal: Uuid,
    /// First record of the reign, once its primary has told.
    pub epoch_start: Option<Lsn>,
    /// A position that was committed: a store in the in-sync set that ends below it has lost data, or is an older copy.
    pub commit_hint: Pos,
}

impl Record for VolumeConfig {
    const KIND: &'static str = "volume-config";
    const VERSION: u32 = 1;
}

impl VolumeConfig {
    /// The config of a new volume whose only copy is, or will be, `member`.
    pub fn first(lineage: Lineage, member: Member, proposal: Uuid) -> Self {
        Self {
            lineage,
            epoch: Epoch(0),
            primary: None,
            in_sync: vec![member],
            learners: Vec::new(),
            proposal,
            epoch_start: None,
            commit_hint: Pos::default(),
        }
    }

    /// What a stored config contradicts itself in, if it does.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        match self.primary {
            _ if self.in_sync.is_empty() => Some("nobody is in sync"),
            None if self.epoch != Epoch(0) => Some("an epoch without a primary"),
            Some(_) if self.epoch == Epoch(0) => Some("a primary without an epoch"),
            Some(primary) if !self.in_sync.contains(&primary) => Some("the primary is not in sync"),
            None | Some(_) => None,
        }
    }

    /// The config after the primary of `told.epoch` told that its reign began at `start` and that everything up to `told` is
    /// committed. The same if that is no news, or if another reign has begun.
    #[must_use]
    pub fn note_commit(&self, start: Lsn, told: Pos) -> Self {
        if told.epoch != self.epoch {
            return self.clone();
        }
        Self {
            epoch_start: Some(start),
            // What lies before the reign is of another epoch, and was told in that one.
            commit_hint: if told.lsn >= start && told.lsn > self.commit_hint.lsn {
                told
            } else {
                self.commit_hint
            },
            ..self.clone()
        }
    }

    /// The config in which `member` reigns in a new epoch.
    ///
    /// Also for a primary that merely restarted: it has forgotten what it promised, so it never resumes its epoch. Another
    /// primary than `member` loses its role unasked; it leaves the in-sync set in the same step, and comes back as a learner.
    /// *When* that may be done is not decided here.
    ///
    /// # Errors
    /// [`MetaError::NotInSync`], [`MetaError::EpochsExhausted`].
    pub fn begin_epoch(
        &self,
        volume: VolumeId,
        member: Member,
        proposal: Uuid,
    ) -> Result<Self, MetaError> {
        // Invariant: only the very store that is named holds everything acknowledged; another store of its node does not.
        if !self.in_sync.contains(&member) {
            return Err(MetaError::NotInSync { volume, member });
        }
        let epoch = self
            .epoch
            .next()
            .ok_or(MetaError::EpochsExhausted { volume })?;
        let mut next = Self {
            epoch,
            primary: Some(member),
            proposal,
            epoch_start: None,
            ..self.clone()
        };
        if let Some(deposed) = self.primary.filter(|&primary| primary != member) {
            next.in_sync.retain(|&m| m != deposed);
            if !next.learners.contains(&deposed) {
                next.learners.push(deposed);
            }
        }
        assert!(
            next.contradiction().is_none(),
            "a new epoch has a primary, and it is in sync"
        );
        Ok(next)
    }
}

/// A volume as the control store has it, spec and config at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its id.
    pub id: VolumeId,
    /// What is wanted.
    pub spec: VolumeSpec,
    /// Revision of the spec.
    pub spec_rev: u64,
    /// What is.
    pub config: VolumeConfig,
    /// Revision of the config: its version.
    pub config_rev: u64,
}

#[cfg(test)]
mod tests {
    use hafs_protocol::{NodeId, StoreId};
    use proptest::prelude::*;

    use super::*;

    fn member(n: u8) -> Member {
        let id = Uuid::from_u128(n.into());
        Member {
            node: NodeId(id),
            store: StoreId(id),
        }
    }

    const VOLUME: VolumeId = VolumeId(Uuid::from_u128(7));

    #[test]
    fn names_follow_the_rule() {
        let longest = "a".repeat(63);
        for good in [
            "a",
            "0",
            "pg-main",
            "my_project.data",
            "a--b",
            "v1.2",
            &longest,
        ] {
            assert_eq!(good.parse::<VolumeName>().unwrap().to_string(), good);
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            ".",
            "..",
            ".a",
            "a.",
            "_a",
            "a_",
            "A",
            "a b",
            "a/b",
            "a#b",
            "ä",
            "a\n",
            "a\0",
            &too_long,
            "67e55044-10b1-426f-9247-bb680e5fe0c8",
            "67e5504410b1426f9247bb680e5fe0c8",
        ] {
            let error = bad.parse::<VolumeName>().unwrap_err();
            assert!(
                matches!(error, MetaError::InvalidName { .. }),
                "{bad:?}: {error:?}"
            );
        }
        let error = "Big".parse::<VolumeName>().unwrap_err();
        let want = r#""Big" is not a volume name: only a-z, 0-9, '-', '_' and '.' are allowed"#;
        assert_eq!(error.to_string(), want);
    }

    #[test]
    fn profiles_are_said_as_they_are_stored() {
        for name in Profile::NAMES {
            let profile: Profile = name.parse().unwrap();
            assert_eq!(profile.to_string(), name);
            assert_eq!(
                serde_json::to_string(&profile).unwrap(),
                format!("\"{name}\"")
            );
        }
        assert!("Database".parse::<Profile>().is_err());
    }

    #[test]
    fn the_last_epoch_has_no_next() {
        let first = VolumeConfig::first(Lineage(Uuid::nil()), member(1), Uuid::nil());
        let last = VolumeConfig {
            epoch: Epoch(u32::MAX),
            primary: Some(member(1)),
            ..first
        };
        let error = last
            .begin_epoch(VOLUME, member(1), Uuid::nil())
            .unwrap_err();
        assert!(
            matches!(error, MetaError::EpochsExhausted { .. }),
            "{error:?}"
        );
    }

    proptest! {
        /// Whatever the config: a new epoch is one higher, its primary was in sync, a deposed one is not any more, and nobody
        /// else comes or goes.
        #[test]
        fn an_epoch_changes_what_it_must_and_no_more(
            in_sync in prop::collection::btree_set(0_u8..6, 1..4),
            primary in prop::option::of(any::<prop::sample::Index>()),
            learners in prop::collection::btree_set(6_u8..9, 0..3),
            candidate in 0_u8..9,
            epoch in 1_u32..1000,
        ) {
            let in_sync: Vec<Member> = in_sync.into_iter().map(member).collect();
            let primary = primary.map(|index| *index.get(&in_sync));
            let before = VolumeConfig {
                lineage: Lineage(Uuid::from_u128(1)),
                epoch: Epoch(if primary.is_some() { epoch } else { 0 }),
                primary,
                in_sync,
                learners: learners.into_iter().map(member).collect(),
                proposal: Uuid::from_u128(2),
                epoch_start: Some(Lsn(5)),
                commit_hint: Pos { epoch: Epoch(1), lsn: Lsn(4) },
            };
            prop_assert_eq!(before.contradiction(), None);
            let (member, proposal) = (member(candidate), Uuid::from_u128(3));
            match before.begin_epoch(VOLUME, member, proposal) {
                Err(error) => {
                    let refused = matches!(error, MetaError::NotInSync { .. });
                    prop_assert!(refused);
                    prop_assert!(!before.in_sync.contains(&member));
                }
                Ok(after) => {
                    prop_assert!(before.in_sync.contains(&member));
                    prop_assert_eq!(after.contradiction(), None);
                    prop_assert_eq!(Some(after.epoch), before.epoch.next());
                    prop_assert_eq!((after.primary, after.proposal), (Some(member), proposal));
                    prop_assert_eq!(after.epoch_start, None);
                    prop_assert_eq!((after.lineage, after.commit_hint), (before.lineage, before.commit_hint));
                    let deposed = before.primary.filter(|&primary| primary != member);
                    prop_assert!(deposed.is_none_or(|d| !after.in_sync.contains(&d) && after.learners.contains(&d)));
                    let all = |config: &VolumeConfig| {
                        let mut all = [&config.in_sync[..], &config.learners].concat();
                        all.sort();
                        all
                    };
                    prop_assert_eq!(all(&after), all(&before));
                    prop_assert!(after.in_sync.len() + 1 >= before.in_sync.len());
                }
            }
        }
    }
}
