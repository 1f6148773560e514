//! What takes setuid, setgid and capabilities away from a file: op by op, by its owner and by root, as on ext4.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::Path;

use hafs_tests::requirement;
use rustix::fs::{
    CWD, FallocateFlags, FileType, Mode, XattrFlags, copy_file_range, fallocate, getxattr,
    ioctl_getflags, mknodat, setxattr,
};
use rustix::io::Errno;

use crate::memory::Map;
use crate::user::{as_user, on_hafs_and_ext4};
use crate::{Mounted, times};

type Op = fn(&Path) -> io::Result<()>;

const NOBODY_ELSE: &str = "chown to nobody else";

/// Those of [`OPS`] that take a file's capabilities away and have no SETATTR of their own.
const WRITES: [&str; 6] = [
    "write",
    "write and fsync",
    "direct write",
    "fallocate",
    "punch",
    "copy_file_range",
];

const OPS: &[(&str, Op)] = &[
    ("write", |path| writable(path)?.write_all_at(b"y", 0)),
    ("write and fsync", |path| {
        let file = writable(path)?;
        file.write_all_at(b"y", 5000)?;
        file.sync_all()
    }),
    ("direct write", |path| {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let page = Page([1; 4096]);
        file.write_all_at(&page.0, 0)
    }),
    ("truncate", |path| writable(path)?.set_len(10)),
    ("truncate to the same length", |path| {
        writable(path)?.set_len(8192)
    }),
    ("O_TRUNC", |path| {
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path)
            .map(drop)
    }),
    ("chown", |path| chown(path, None, Some(1000))),
    (NOBODY_ELSE, |path| chown(path, None, None)),
    ("fallocate", |path| {
        Ok(fallocate(
            writable(path)?,
            FallocateFlags::empty(),
            0,
            100_000,
        )?)
    }),
    ("punch", |path| {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(writable(path)?, punch, 0, 4096)?)
    }),
    ("copy_file_range", |path| {
        let from = File::open(path.with_file_name("source"))?;
        copy_file_range(from, Some(&mut 0), writable(path)?, Some(&mut 0), 10)?;
        Ok(())
    }),
    ("mmap", store_mapped),
    ("utimensat", |path| {
        writable(path)?.set_modified(std::time::UNIX_EPOCH)
    }),
    ("setxattr", |path| {
        Ok(setxattr(path, "user.a", b"v", XattrFlags::empty())?)
    }),
    ("read", |path| fs::read(path).map(drop)),
];

#[repr(align(4096))]
struct Page([u8; 4096]);

fn writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn store_mapped(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Map::shared(&file, 0).set(0, 1);
    file.sync_all()
}

/// An operation on a file of uid 1000: its name, the file's mode, whose it is, and whether the file has capabilities.
type Case = (&'static str, u32, u32, bool);

/// Mode and whether there are capabilities after `op`.
fn after(place: &Path, op: Op, (_, mode, uid, capable): Case) -> String {
    let path = place.join("subject");
    fs::write(&path, [7; 8192]).expect("root may");
    chown(&path, Some(1000), Some(1000)).expect("root may");
    if capable {
        // VFS_CAP_REVISION_2, cap_net_bind_service permitted.
        let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        setxattr(&path, "security.capability", &value, XattrFlags::empty()).expect("root may");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("root may");
    let result = match uid {
        0 => op(&path),
        _ => as_user(uid, uid, &[], || op(&path)),
    };
    let mode = fs::metadata(&path).expect("root may").permissions().mode() & 0o7777;
    let capable = getxattr(&path, "security.capability", &mut [0; 32]).is_ok();
    fs::remove_file(&path).expect("root may");
    let result = result.map_err(|error| error.raw_os_error());
    let privileges = if capable { "capable" } else { "plain" };
    format!("{result:?} {mode:o} {privileges}")
}

/// What is left after each operation.
fn all(place: &Path) -> BTreeMap<Case, String> {
    fs::write(place.join("source"), [9; 100]).expect("root may");
    let mut left = BTreeMap::new();
    for (name, op) in OPS {
        for mode in [0o6777, 0o6767, 0o4755, 0o2766] {
            for uid in [1000, 0] {
                for capable in [true, false] {
                    let case = (*name, mode, uid, capable);
                    left.insert(case, after(place, *op, case));
                }
            }
        }
    }
    left
}

#[test]
fn privileges_go_as_on_ext4() {
    if !requirement::mounts_work("setuid, setgid and capabilities") {
        return;
    }
    for (writeback, mounted) in [true, false].into_iter().zip(Mounted::in_both_modes()) {
        let places = on_hafs_and_ext4(&mounted);
        let [hafs, ext4] = [0, 1].map(|at| all(places.iter().nth(at).expect("one of the two")));
        for (case, expected) in [
            (("write", 0o6777, 1000, true), "Ok(()) 777 plain"),
            (("write", 0o6777, 0, false), "Ok(()) 6777 plain"),
            (("O_TRUNC", 0o6777, 1000, true), "Ok(()) 777 plain"),
            ((NOBODY_ELSE, 0o6777, 0, true), "Ok(()) 777 plain"),
            (("utimensat", 0o6777, 1000, true), "Ok(()) 6777 capable"),
        ] {
            assert_eq!(hafs[&case], expected, "{case:?}");
        }
        for (case, left) in &hafs {
            let (op, mode, uid, capable) = *case;
            // Without the writeback cache the kernel says the same before these as for a chown to nobody else.
            let is_told_apart = writeback || uid != 0 || !capable || !WRITES.contains(&op);
            let like = if is_told_apart { op } else { NOBODY_ELSE };
            let expected = &ext4[&(like, mode, uid, capable)];
            assert_eq!(left, expected, "{case:?} with writeback {writeback}");
        }
        mounted.end();
    }
}

/// Mode after chown(2) to nobody else, and whether the change time has moved: of each kind of file, by its owner and root.
fn after_chown(place: &Path) -> Vec<String> {
    let kinds = [
        FileType::RegularFile,
        FileType::Directory,
        FileType::Symlink,
        FileType::Fifo,
        FileType::Socket,
        FileType::CharacterDevice,
    ];
    let mut seen = Vec::new();
    for (number, kind) in kinds.into_iter().enumerate() {
        for uid in [1000, 0] {
            let path = place.join(format!("{number}-{uid}"));
            match kind {
                FileType::Directory => fs::create_dir(&path).expect("root may"),
                FileType::Symlink => symlink("nowhere", &path).expect("root may"),
                _ => mknodat(CWD, &path, kind, Mode::from(0o644), 0).expect("root may"),
            }
            lchown(&path, Some(1000), Some(1000)).expect("root may");
            if kind != FileType::Symlink {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).expect("root may");
            }
            let moved = times::moved(&path, &|| match uid {
                0 => lchown(&path, None, None).expect("root may"),
                _ => as_user(uid, uid, &[], || lchown(&path, None, None)).expect("its owner may"),
            });
            let mode = fs::symlink_metadata(&path).expect("root may").mode();
            seen.push(format!(
                "{kind:?} by {uid}: {mode:o}, times moved {moved:?}"
            ));
        }
    }
    seen
}

#[test]
fn chown_to_nobody_else_counts_as_chown() {
    if !requirement::mounts_work("chown(-1, -1)") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let places = on_hafs_and_ext4(&mounted);
        let [hafs, ext4] = [0, 1].map(|at| after_chown(places.iter().nth(at).expect("one")));
        assert_eq!(hafs, ext4, "hafs, then ext4");
        mounted.end();
    }
}

/// What cannot be on hafs is refused and not pretended: attributes of chattr(1).
#[test]
fn inode_flags_are_refused() {
    if !requirement::mounts_work("inode flags") {
        return;
    }
    let mounted = Mounted::new();
    let file = File::create(mounted.mount.join("file")).unwrap();
    assert_eq!(ioctl_getflags(&file), Err(Errno::NOTTY));
    drop(file);
    mounted.end();
}
