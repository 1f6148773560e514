//! The mount helper's `-o`: what mount(8) passes on, sorted into what the kernel gets, what hafs needs, and the rest.
//!
//! An option that is not known here is refused: one that is silently ignored may be one that somebody relies on.

use std::path::PathBuf;

use rustix::mount::MountFlags;

/// What was asked for with `-o`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags of the mount. Without a word: writable, with suid and dev, as mount(8) does for root.
    pub flags: MountFlags,
    /// Options that are handed to the kernel's security modules as they are, such as `context=..`.
    pub security: Vec<String>,
    /// Remarks for mount(8)'s table: `_netdev` and `x-..`.
    pub remarks: Vec<String>,
    /// The control socket of the hafsd to ask.
    pub socket: Option<PathBuf>,
    /// Change the flags of a mount that is there, instead of mounting.
    pub remount: bool,
}

/// Why an option was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// None that hafs knows.
    #[error("unknown option `{0}`")]
    Unknown(String),
    /// Known, but its value is missing or makes no sense.
    #[error("option `{option}` {problem}")]
    Value {
        /// As given.
        option: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Known to mount(8), not kept by hafs.
    #[error("option `{option}` is not supported")]
    Unsupported {
        /// As given.
        option: String,
        /// Why not, and what to do instead.
        advice: (&'static str, &'static str),
    },
}

impl OptionError {
    /// Why it is refused, and what to do.
    pub const fn advice(&self) -> (&'static str, &'static str) {
        match self {
            Self::Unknown(_) => (
                "an option that is passed over in silence may be one that somebody relies on",
                "leave it out, or pass -s to mount; mount.fuse.hafs --help lists the options",
            ),
            Self::Value { .. } => (
                "its value cannot be used",
                "correct it; mount.fuse.hafs --help shows how",
            ),
            Self::Unsupported { advice, .. } => *advice,
        }
    }
}

/// An option that sets or clears flags.
struct FlagOption {
    name: &'static str,
    set: MountFlags,
    clear: MountFlags,
}

const NONE: MountFlags = MountFlags::empty();
/// The kernel keeps one of these.
const ATIME: MountFlags = MountFlags::NOATIME
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME);

/// Options that are flags of a mount, and so hold for a bind of a mount by itself.
const FLAG_OPTIONS: [FlagOption; 17] = [
    FlagOption {
        name: "ro",
        set: MountFlags::RDONLY,
        clear: NONE,
    },
    FlagOption {
        name: "rw",
        set: NONE,
        clear: MountFlags::RDONLY,
    },
    FlagOption {
        name: "nosuid",
        set: MountFlags::NOSUID,
        clear: NONE,
    },
    FlagOption {
        name: "suid",
        set: NONE,
        clear: MountFlags::NOSUID,
    },
    FlagOption {
        name: "nodev",
        set: MountFlags::NODEV,
        clear: NONE,
    },
    FlagOption {
        name: "dev",
        set: NONE,
        clear: MountFlags::NODEV,
    },
    FlagOption {
        name: "noexec",
        set: MountFlags::NOEXEC,
        clear: NONE,
    },
    FlagOption {
        name: "exec",
        set: NONE,
        clear: MountFlags::NOEXEC,
    },
    FlagOption {
        name: "noatime",
        set: MountFlags::NOATIME,
        clear: ATIME,
    },
    FlagOption {
        name: "atime",
        set: NONE,
        clear: MountFlags::NOATIME,
    },
    FlagOption {
        name: "relatime",
        set: MountFlags::RELATIME,
        clear: ATIME,
    },
    FlagOption {
        name: "norelatime",
        set: NONE,
        clear: MountFlags::RELATIME,
    },
    FlagOption {
        name: "strictatime",
        set: MountFlags::STRICTATIME,
        clear: ATIME,
    },
    FlagOption {
        name: "nostrictatime",
        set: NONE,
        clear: MountFlags::STRICTATIME,
    },
    FlagOption {
        name: "nodiratime",
        set: MountFlags::NODIRATIME,
        clear: NONE,
    },
    FlagOption {
        name: "diratime",
        set: NONE,
        clear: MountFlags::NODIRATIME,
    },
    FlagOption {
        name: "defaults",
        set: NONE,
        clear: NONE,
    },
];

/// Options for mount(8) itself, or that say what is the case anyway. mount(8) has acted on them.
const IGNORED: [&str; 14] = [
    "async",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nouser",
    "nousers",
    "noowner",
    "nogroup",
    "loud",
    "silent",
    "nolazytime",
    "nomand",
    "noiversion",
];
/// The same with a value, or in families.
const IGNORED_PREFIXES: [&str; 5] = ["x-", "X-", "comment=", "uhelper=", "helper="];
/// They let users mount who are not root.
const USERS: [&str; 4] = ["user", "users", "owner", "group"];
/// What the kernel shows of a mount and nobody can change: mount(8) passes it back on a remount.
const SHOWN: [&str; 3] = ["allow_other", "default_permissions", "bind"];
/// The same with a value.
const SHOWN_PREFIXES: [&str; 6] = [
    "user_id=",
    "group_id=",
    "max_read=",
    "blksize=",
    "rootmode=",
    "fd=",
];
/// For the kernel's security modules.
const SECURITY_PREFIXES: [&str; 4] = ["context=", "fscontext=", "defcontext=", "rootcontext="];

impl MountOptions {
    /// Reads `-o` arguments, each a list with commas; a later option wins. With `sloppy` (`mount -s`), unknown options
    /// are passed over.
    pub fn parse(lists: &[String], sloppy: bool) -> Result<Self, OptionError> {
        let mut options = Self {
            flags: MountFlags::empty(),
            security: Vec::new(),
            remarks: Vec::new(),
            socket: None,
            remount: lists
                .iter()
                .flat_map(|list| split(list))
                .any(|option| option == "remount"),
        };
        for option in lists.iter().flat_map(|list| split(list)) {
            let shown = SHOWN.contains(&option)
                || SHOWN_PREFIXES
                    .iter()
                    .any(|prefix| option.starts_with(prefix));
            match options.take(option) {
                Err(OptionError::Unknown(_)) if sloppy || (options.remount && shown) => {}
                result => result?,
            }
        }
        Ok(options)
    }

    fn take(&mut self, option: &str) -> Result<(), OptionError> {
        if let Some(flag) = FLAG_OPTIONS.iter().find(|flag| flag.name == option) {
            self.flags.remove(flag.clear);
            self.flags.insert(flag.set);
        } else if let Some(path) = option.strip_prefix("socket=") {
            if !path.starts_with('/') {
                let problem = "needs an absolute path";
                return Err(OptionError::Value {
                    option: option.to_owned(),
                    problem,
                });
            }
            self.socket = Some(path.into());
        } else if SECURITY_PREFIXES
            .iter()
            .any(|prefix| option.starts_with(prefix))
        {
            self.security.push(option.to_owned());
        } else if option == "remount"
            || IGNORED.contains(&option)
            || IGNORED_PREFIXES
                .iter()
                .any(|prefix| option.starts_with(prefix))
        {
            // mount(8) has acted on it, or it is a remark.
            if option == "_netdev" || option.starts_with("x-") {
                self.remarks.push(option.to_owned());
            }
        } else if let Some(advice) = unsupported(option) {
            return Err(OptionError::Unsupported {
                option: option.to_owned(),
                advice,
            });
        } else {
            return Err(OptionError::Unknown(option.to_owned()));
        }
        Ok(())
    }
}

/// Why an option that mount(8) knows is not kept, and what to do.
fn unsupported(option: &str) -> Option<(&'static str, &'static str)> {
    if USERS.contains(&option) || option.starts_with("user=") {
        return Some((
            "only root can mount and unmount a hafs volume; there is no setuid helper",
            "leave it out, and have root mount it",
        ));
    }
    match option {
        "sync" | "dirsync" => Some((
            "a bind of a mount that is there could not keep it",
            "leave it out; data is safe after fsync(2), and each write with O_SYNC",
        )),
        "mand" | "lazytime" | "iversion" => Some(("hafs does not keep it", "leave it out")),
        _ => None,
    }
}

/// Splits at commas that are not within double quotes, as `context="a:b:c0,c1"` needs; empty parts are left out.
pub(super) fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions, OptionError> {
        MountOptions::parse(&[list.to_owned()], false)
    }

    #[test]
    fn a_root_mount_allows_suid_and_dev_unless_told() {
        assert_eq!(parse("rw").unwrap().flags, MountFlags::empty());
        assert_eq!(
            parse("ro,nosuid,nodev,noexec").unwrap().flags,
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
        );
    }

    #[test]
    fn the_later_option_wins() {
        assert_eq!(parse("ro,rw").unwrap().flags, MountFlags::empty());
        assert_eq!(
            parse("noatime,strictatime").unwrap().flags,
            MountFlags::STRICTATIME
        );
        assert_eq!(
            parse("nosuid,defaults,suid").unwrap().flags,
            MountFlags::empty()
        );
    }

    #[test]
    fn what_mount_leaves_in_is_passed_over() {
        let options = parse(
            "rw,_netdev,nofail,x-systemd.requires=hafsd.service,comment=a b,nouser,noauto,X-a",
        )
        .unwrap();
        assert_eq!(options.flags, MountFlags::empty());
        let remarks = ["_netdev", "x-systemd.requires=hafsd.service"];
        assert_eq!(options.remarks, remarks);
    }

    #[test]
    fn mounts_by_users_are_refused_clearly() {
        for option in ["user", "users", "owner", "group", "user=joe"] {
            let refused = parse(&format!("rw,{option}")).unwrap_err();
            assert!(refused.advice().0.contains("only root"), "{refused:?}");
        }
    }

    #[test]
    fn contexts_keep_their_commas() {
        let options =
            parse(r#"context="system_u:object_r:x_t:s0:c1,c2",ro,,socket=/run/s"#).unwrap();
        assert_eq!(
            options.security,
            [r#"context="system_u:object_r:x_t:s0:c1,c2""#]
        );
        assert_eq!(options.flags, MountFlags::RDONLY);
        assert_eq!(options.socket, Some("/run/s".into()));
    }

    #[test]
    fn a_remount_gets_back_what_the_kernel_shows() {
        let options = parse("rw,relatime,user_id=0,group_id=0,allow_other,remount,ro").unwrap();
        assert!(options.remount);
        assert_eq!(options.flags, MountFlags::RDONLY | MountFlags::RELATIME);
        assert!(matches!(
            parse("rw,allow_other"),
            Err(OptionError::Unknown(_))
        ));
    }

    #[test]
    fn unknown_options_are_refused_unless_sloppy() {
        assert_eq!(
            parse("ro,compress=zstd"),
            Err(OptionError::Unknown("compress=zstd".into()))
        );
        assert_eq!(
            parse("hint.x=1"),
            Err(OptionError::Unknown("hint.x=1".into()))
        );
        assert!(MountOptions::parse(&["compress=zstd,ro".into()], true).is_ok());
        assert!(matches!(
            parse("sync"),
            Err(OptionError::Unsupported { .. })
        ));
        assert!(matches!(
            parse("socket=relative"),
            Err(OptionError::Value { .. })
        ));
    }
}
