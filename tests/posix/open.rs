//! `open` with each of its flags, and what descriptors then do.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::process::Command;

use hafs_tests::requirement;
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::{Errno, ReadWriteFlags};

use crate::Mounted;
use crate::errno::{errno, file};

#[test]
fn created_files_have_the_mode_without_the_umask() {
    if !requirement::mounts_work("O_CREAT") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let before = rustix::process::umask(Mode::from(0o027));
    let create = OFlags::CREATE | OFlags::WRONLY;
    for (name, mode, is) in [
        ("a", 0o777, 0o750),
        ("b", 0o666, 0o640),
        ("c", 0o6777, 0o6750),
        ("d", 0, 0),
    ] {
        open(at(name), create, Mode::from(mode)).unwrap();
        assert_eq!(
            fs::metadata(at(name)).unwrap().mode() & 0o7777,
            is,
            "{name}"
        );
        // Opening what is there changes no mode.
        open(at(name), create, Mode::from(0o777)).unwrap();
        assert_eq!(
            fs::metadata(at(name)).unwrap().mode() & 0o7777,
            is,
            "{name}"
        );
    }
    fs::create_dir(at("dir")).unwrap();
    assert_eq!(fs::metadata(at("dir")).unwrap().mode() & 0o7777, 0o750);
    rustix::process::umask(before);
    mounted.end();
}

#[test]
fn exclusive_creation_never_follows() {
    if !requirement::mounts_work("O_EXCL") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let mode = Mode::from(0o644);
    let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
    symlink("target", at("dangling")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    assert_eq!(errno(open(at("dangling"), exclusive, mode)), Errno::EXIST);
    assert_eq!(errno(open(at("dir"), exclusive, mode)), Errno::EXIST);
    assert!(!at("target").exists());
    // Without O_EXCL the link is followed, and its target made.
    open(at("dangling"), OFlags::CREATE | OFlags::RDWR, mode).unwrap();
    assert!(at("target").is_file());
    assert_eq!(
        errno(open(at("dir"), OFlags::CREATE | OFlags::RDWR, mode)),
        Errno::ISDIR
    );
    // Of several that create one name at once, one wins.
    let race = |name: String| {
        let runs = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| File::create_new(at(&name)).is_ok()))
                .collect();
            all.into_iter()
                .map(|one| one.join().unwrap())
                .collect::<Vec<_>>()
        });
        runs.into_iter().filter(|&won| won).count()
    };
    for number in 0..100 {
        assert_eq!(race(format!("race-{number}")), 1);
    }
    mounted.end();
}

#[test]
fn truncation_at_open_takes_every_byte() {
    if !requirement::mounts_work("O_TRUNC") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        let flags = [
            OFlags::WRONLY | OFlags::TRUNC,
            OFlags::RDWR | OFlags::TRUNC | OFlags::CREATE,
            // What POSIX leaves open, Linux does.
            OFlags::RDONLY | OFlags::TRUNC,
            OFlags::RDWR | OFlags::TRUNC | OFlags::DIRECT,
        ];
        for flags in flags {
            for synced in [true, false] {
                let other = file(&path, &[7; 300_000]);
                if synced {
                    other.sync_all().unwrap();
                }
                let before = other.metadata().unwrap();
                let opened = File::from(open(&path, flags, Mode::from(0o644)).unwrap());
                let after = other.metadata().unwrap();
                assert_eq!((after.len(), after.blocks()), (0, 0), "{flags:?}");
                assert_eq!(after.ino(), before.ino(), "it stays the same file");
                assert!(
                    (after.ctime(), after.ctime_nsec()) >= (before.ctime(), before.ctime_nsec())
                );
                // The old bytes are gone for good: growth brings zeros.
                other.set_len(300_000).unwrap();
                let mut bytes = vec![1; 300_000];
                other.read_exact_at(&mut bytes, 0).unwrap();
                assert!(bytes.iter().all(|&byte| byte == 0), "{flags:?}");
                drop(opened);
            }
        }
        // A refused open truncates nothing.
        file(&path, b"kept");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        for dir in [mounted.scratch.path(), mounted.mount.path()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut shell = Command::new("setpriv");
        shell.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
        let refused = hafs_tests::run(shell.args(["sh", "-c", ": > \"$1\"", "sh"]).arg(&path));
        assert!(refused.stderr.contains("Permission denied"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"kept");
        mounted.end();
    }
}

#[test]
fn appending_descriptors_write_at_the_end() {
    if !requirement::mounts_work("O_APPEND") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        for direct in [0, libc::O_DIRECT] {
            let path = mounted.mount.join(&format!("log-{direct}"));
            let mut options = OpenOptions::new();
            options.create(true).append(true).read(true);
            let mut log = options.custom_flags(direct).open(&path).unwrap();
            log.write_all(b"one ").unwrap();
            log.seek(SeekFrom::Start(0)).unwrap();
            log.write_all(b"two ").unwrap();
            // Linux appends here too, whatever the offset.
            log.write_all_at(b"three ", 0).unwrap();
            // Another descriptor, or another process, moves the end.
            let other = OpenOptions::new().append(true).open(&path).unwrap();
            (&other).write_all(b"four ").unwrap();
            log.write_all(b"five").unwrap();
            log.set_len(19).unwrap();
            log.write_all(b"six").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"one two three four six");
            // The flag can be taken away and given.
            rustix::fs::fcntl_setfl(&log, OFlags::empty()).unwrap();
            log.write_all_at(b"ONE", 0).unwrap();
            assert!(fs::read(&path).unwrap().starts_with(b"ONE two"));
        }
        mounted.end();
    }
}

#[test]
fn one_write_may_append_or_sync() {
    if !requirement::mounts_work("pwritev2") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        let open = file(&path, b"0123");
        let write = |bytes: &[u8], flags| {
            rustix::io::pwritev2(&open, &[std::io::IoSlice::new(bytes)], 0, flags)
        };
        assert_eq!(write(b"45", ReadWriteFlags::APPEND).unwrap(), 2);
        assert_eq!(write(b"ab", ReadWriteFlags::DSYNC).unwrap(), 2);
        assert_eq!(write(b"c", ReadWriteFlags::SYNC).unwrap(), 1);
        assert_eq!(fs::read(&path).unwrap(), b"cb2345");
        drop(open);
        mounted.end();
    }
}

#[test]
fn kinds_of_files_and_flags_that_do_not_fit() {
    if !requirement::mounts_work("O_DIRECTORY, O_NOFOLLOW, O_PATH, O_TMPFILE, O_NOATIME") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let mode = Mode::from(0o644);
    let to = |name: &str, flags| openat(CWD, at(name), flags, mode);
    file(&at("file"), b"bytes");
    fs::create_dir(at("dir")).unwrap();
    symlink("file", at("link")).unwrap();
    symlink("dir", at("dirlink")).unwrap();
    assert_eq!(errno(to("file", OFlags::DIRECTORY)), Errno::NOTDIR);
    assert_eq!(errno(to("link", OFlags::NOFOLLOW)), Errno::LOOP);
    to("dirlink", OFlags::DIRECTORY).unwrap();
    assert_eq!(
        errno(to("dirlink", OFlags::DIRECTORY | OFlags::NOFOLLOW)),
        Errno::NOTDIR
    );
    // A path descriptor names a file without opening it.
    let named = File::from(to("link", OFlags::PATH | OFlags::NOFOLLOW).unwrap());
    assert!(named.metadata().unwrap().file_type().is_symlink());
    drop(named);
    let named = File::from(to("file", OFlags::PATH).unwrap());
    assert_eq!(named.metadata().unwrap().len(), 5);
    assert_eq!(errno(named.read_at(&mut [0; 1], 0)), Errno::BADF);
    fs::rename(at("file"), at("moved")).unwrap();
    let again = fs::read(format!("/proc/self/fd/{}", named.as_raw_fd()));
    assert_eq!(again.unwrap(), b"bytes");
    // The FUSE crate does not carry files without a name.
    assert_eq!(
        errno(to("dir", OFlags::TMPFILE | OFlags::RDWR)),
        Errno::OPNOTSUPP
    );
    // Only the owner may read without a trace.
    to("moved", OFlags::NOATIME).unwrap();
    for dir in [mounted.scratch.path(), mounted.mount.path()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut dd = Command::new("setpriv");
    dd.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
    dd.args(["dd", "iflag=noatime", "status=none"]);
    let refused = hafs_tests::run(dd.arg(format!("if={}", at("moved").display())));
    assert!(
        refused.stderr.contains("Operation not permitted"),
        "{refused}"
    );
    drop(named);
    mounted.end();
}

#[test]
fn programs_run_and_are_busy_while_they_do() {
    if !requirement::mounts_work("execve") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("program");
        fs::copy("/bin/sleep", &path).unwrap();
        let mut running = Command::new(&path).arg("60").spawn().unwrap();
        let write = OpenOptions::new().write(true).open(&path);
        let refused = errno(write);
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(refused, Errno::TXTBSY);
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(errno(Command::new(&path).arg("0").spawn()), Errno::TXTBSY);
        drop(writer);
        hafs_tests::run(Command::new(&path).arg("0")).ok();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(errno(Command::new(&path).arg("0").spawn()), Errno::ACCESS);
        mounted.end();
    }
}

#[test]
fn a_limit_on_file_sizes_holds() {
    if !requirement::mounts_work("RLIMIT_FSIZE") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        // ulimit counts in units of 512 bytes: 8 KiB.
        let script =
            "trap '' XFSZ; ulimit -f 16; head -c 100000 /dev/zero > limited; wc -c < limited";
        let mut shell = Command::new("sh");
        let ran = hafs_tests::run(shell.args(["-c", script]).current_dir(mounted.mount.path()));
        assert!(ran.stderr.contains("File too large"), "{ran}");
        assert_eq!(ran.stdout.trim(), "8192", "{ran}");
        mounted.end();
    }
}

#[test]
fn synced_writes_outlive_hafsd() {
    if !requirement::mounts_work("O_SYNC, O_DSYNC, RWF_DSYNC, msync, fdatasync and a kill") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let at = |name: &str| mounted.mount.join(name);
        let bytes: Vec<u8> = (0..200_000_u32)
            .map(|n| n.to_le_bytes()[0] ^ 0x5a)
            .collect();
        for (name, flags) in [
            ("sync", libc::O_SYNC),
            ("dsync", libc::O_DSYNC),
            ("direct", libc::O_DIRECT),
            ("direct-sync", libc::O_DIRECT | libc::O_SYNC),
        ] {
            let mut options = OpenOptions::new();
            let file = options
                .write(true)
                .create(true)
                .custom_flags(flags)
                .open(at(name));
            file.unwrap().write_all(&bytes).unwrap();
        }
        let rwf = file(&at("rwf"), b"");
        let slice = [std::io::IoSlice::new(&bytes)];
        let written = rustix::io::pwritev2(&rwf, &slice, 0, ReadWriteFlags::DSYNC).unwrap();
        assert_eq!(written, bytes.len());
        file(&at("fdatasync"), &bytes).sync_data().unwrap();
        file(&at("fsync"), &bytes).sync_all().unwrap();
        let mapped = file(&at("msync"), &vec![0; bytes.len()]);
        write_through_mapping(&mapped, &bytes);
        drop((rwf, mapped));
        let mounted = mounted.killed();
        for name in [
            "sync",
            "dsync",
            "direct",
            "direct-sync",
            "rwf",
            "fdatasync",
            "fsync",
            "msync",
        ] {
            let mut found = Vec::new();
            let mut file = File::open(mounted.mount.join(name)).unwrap();
            file.read_to_end(&mut found).unwrap();
            assert!(found == bytes, "{name}: {} bytes, or others", found.len());
        }
        mounted.end();
    }
}

/// Writes `bytes` at the start of the file by a shared mapping, and syncs that with msync alone.
#[expect(unsafe_code, reason = "a mapping is memory that others change")]
fn write_through_mapping(file: &File, bytes: &[u8]) {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping of a file that is as long; nobody else has its address, and it is gone when this returns.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            bytes.len(),
            protection,
            flags,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len());
        assert_eq!(libc::msync(at, bytes.len(), libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(at, bytes.len()), 0);
    }
}
