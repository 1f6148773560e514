//! What takes setuid, setgid and capabilities away from a file: op by op, by its owner and by root, as on ext4.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use hafs_tests::requirement;
use rustix::fs::{
    FallocateFlags, XattrFlags, copy_file_range, fallocate, getxattr, ioctl_getflags, setxattr,
};
use rustix::io::Errno;

use crate::Mounted;
use crate::memory::Map;
use crate::user::{as_user, on_hafs_and_ext4};

type Op = fn(&Path) -> io::Result<()>;

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
    ("chown to nobody else", |path| chown(path, None, None)),
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

/// Mode and whether there are capabilities after `op` on a file of uid 1000 with `mode`.
fn after(place: &Path, op: Op, mode: u32, uid: u32) -> String {
    let path = place.join("subject");
    fs::write(&path, [7; 8192]).expect("root may");
    chown(&path, Some(1000), Some(1000)).expect("root may");
    // VFS_CAP_REVISION_2, cap_net_bind_service permitted.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    setxattr(
        &path,
        "security.capability",
        &capability,
        XattrFlags::empty(),
    )
    .expect("root may");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("root may");
    let result = match uid {
        0 => op(&path),
        _ => as_user(uid, uid, &[], || op(&path)),
    };
    let mode = fs::metadata(&path).expect("root may").permissions().mode() & 0o7777;
    let capable = getxattr(&path, "security.capability", &mut [0; 32]).is_ok();
    fs::remove_file(&path).expect("root may");
    let result = result.map_err(|error| error.raw_os_error());
    format!(
        "{result:?} {mode:o} {}",
        if capable { "capable" } else { "plain" }
    )
}

#[test]
fn privileges_go_as_on_ext4() {
    if !requirement::mounts_work("setuid, setgid and capabilities") {
        return;
    }
    let mounted = Mounted::new();
    let mut seen: Vec<Vec<String>> = Vec::new();
    for place in on_hafs_and_ext4(&mounted).iter() {
        fs::write(place.join("source"), [9; 100]).unwrap();
        let mut lines = Vec::new();
        for (name, op) in OPS {
            for mode in [0o6777, 0o6767, 0o4755, 0o2766] {
                for uid in [1000, 0] {
                    let left = after(place, *op, mode, uid);
                    lines.push(format!("{name} of {mode:o} by {uid}: {left}"));
                }
            }
        }
        seen.push(lines);
    }
    for expected in [
        "write of 6777 by 1000: Ok(()) 777 plain",
        "write of 6777 by 0: Ok(()) 6777 plain",
        "O_TRUNC of 6777 by 1000: Ok(()) 777 plain",
        "chown to nobody else of 6777 by 0: Ok(()) 777 plain",
        "utimensat of 6777 by 1000: Ok(()) 6777 capable",
    ] {
        assert!(
            seen[0].iter().any(|line| line == expected),
            "no {expected:?} in {:#?}",
            seen[0]
        );
    }
    for other in &seen[1..] {
        for (hafs, ext4) in seen[0].iter().zip(other) {
            assert_eq!(hafs, ext4, "hafs, then ext4");
        }
    }
    mounted.end();
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
