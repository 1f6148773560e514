//! What is mounted where, as the kernel says in `/proc/self/mountinfo`.
//!
//! The daemon finds mounts here that a killed daemon left behind, the mount helper finds out whether a volume is mounted
//! already. Read without touching the mounts themselves, so that a dead one blocks nobody.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::error::FsError;
use crate::mount::FILESYSTEM_TYPE;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount, a line of mountinfo. See proc(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's number.
    pub id: u64,
    /// Number of the mount it sits on.
    pub parent: u64,
    /// Major and minor number of `st_dev` for everything in it. For FUSE the minor is the connection's number.
    pub device: (u32, u32),
    /// The directory within the filesystem that is the mount's root; not `/` for a bind of a directory.
    pub root: PathBuf,
    /// Where it is mounted, as this process sees it.
    pub mount_point: PathBuf,
    /// Options of the mount, such as `rw,noatime`.
    pub options: String,
    /// Type, such as `ext4` or `fuse.hafs`.
    pub filesystem_type: String,
    /// What is mounted: for hafs the volume's name.
    pub source: OsString,
    /// Options of the filesystem.
    pub super_options: String,
}

impl MountEntry {
    /// True for a mount of a hafs volume, served or dead, first mount or bind.
    pub fn is_hafs(&self) -> bool {
        self.filesystem_type == FILESYSTEM_TYPE
    }

    /// True if the mount itself, or its filesystem, is read only.
    pub fn is_read_only(&self) -> bool {
        [&self.options, &self.super_options]
            .iter()
            .any(|options| options.split(',').any(|option| option == "ro"))
    }
}

/// All mounts in this process's mount namespace, in the order in which they were made.
///
/// # Errors
/// [`FsError::Io`] if mountinfo cannot be read, [`FsError::Corrupt`] for a line that is none.
pub fn mounts() -> Result<Vec<MountEntry>, FsError> {
    let text = fs::read(MOUNTINFO).map_err(|source| FsError::Io {
        op: "read",
        path: MOUNTINFO.to_owned(),
        source,
    })?;
    parse(&text)
}

/// The topmost mount whose mount point is `path`, if any.
pub fn top_at<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    // Later lines lie on top of earlier ones at the same place.
    mounts.iter().rev().find(|mount| mount.mount_point == path)
}

pub(crate) fn parse(text: &[u8]) -> Result<Vec<MountEntry>, FsError> {
    text.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                FsError::Corrupt(format!("{MOUNTINFO}: {}", String::from_utf8_lossy(line)))
            })
        })
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: any number of optional fields, then a
/// lone dash.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = unescape(fields.next()?).into();
    let mount_point = unescape(fields.next()?).into();
    let options = text(fields.next()?);
    fields.find(|&field| field == b"-")?;
    Some(MountEntry {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        filesystem_type: text(fields.next()?),
        source: unescape(fields.next()?),
        super_options: text(fields.next()?),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    unescape(field).to_string_lossy().into_owned()
}

/// The kernel writes space, tab, newline, backslash and `#` as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(octal);
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    digits
        .bytes()
        .all(|digit| digit.is_ascii_digit())
        .then_some(())?;
    u8::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
42 27 0:39 / /srv/my\\040data rw,relatime - fuse.hafs pg-main rw,user_id=0,group_id=0,allow_other
43 42 0:40 /a /srv/my\\040data ro,relatime shared:2 master:1 propagate_from:3 - fuse.hafs wiki rw
";

    #[test]
    fn fields_are_found_whatever_optional_ones_there_are() {
        let mounts = parse(LINES.as_bytes()).unwrap();
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].device, (98, 0));
        assert_eq!(mounts[0].root, Path::new("/mnt1"));
        assert!(!mounts[0].is_hafs());
        assert_eq!(mounts[1].mount_point, Path::new("/srv/my data"));
        assert_eq!(mounts[1].source, "pg-main");
        assert_eq!(mounts[1].device, (0, 39));
        assert!(mounts[1].is_hafs() && !mounts[1].is_read_only());
        assert_eq!(mounts[2].parent, 42);
        assert!(mounts[2].is_read_only());
    }

    #[test]
    fn the_later_mount_lies_on_top() {
        let mounts = parse(LINES.as_bytes()).unwrap();
        assert_eq!(
            top_at(&mounts, Path::new("/srv/my data")).unwrap().source,
            "wiki"
        );
        assert!(top_at(&mounts, Path::new("/srv")).is_none());
    }

    #[test]
    fn escapes_and_what_only_looks_like_one() {
        assert_eq!(unescape(b"a\\011b\\134c\\043"), "a\tb\\c#");
        assert_eq!(unescape(b"\\999\\04"), "\\999\\04");
        assert_eq!(unescape(b"\\+12"), "\\+12");
    }

    #[test]
    fn a_line_that_is_none_is_refused() {
        for line in [
            "x",
            "1 2 3 4 5 6",
            "1 2 0:1 / / rw - tmpfs",
            "1 2 01 / / rw - a b c",
        ] {
            assert!(
                matches!(parse(line.as_bytes()), Err(FsError::Corrupt(_))),
                "{line}"
            );
        }
    }

    #[test]
    fn this_machine_can_be_read() {
        assert!(top_at(&mounts().unwrap(), Path::new("/")).is_some());
    }
}
