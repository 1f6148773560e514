//! Bytes of files: holes, truncation, reservation, copies, sizes up to the largest, what is no regular file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use hafs_tests::requirement;
use rustix::fs::{
    CWD, FallocateFlags, FileType, Mode, OFlags, copy_file_range, fallocate, ftruncate,
    ioctl_ficlone, makedev, mknodat, open,
};
use rustix::io::Errno;

use crate::Mounted;
use crate::errno::{errno, file};

/// The largest offset of a file on Linux.
const END: u64 = i64::MAX as u64;

/// What `len` bytes from `from` on are, or fewer up to the end.
fn read(file: &File, from: u64, len: usize) -> Vec<u8> {
    // The kernel refuses a read that would end past the largest offset.
    let len = len.min(usize::try_from(END - from).expect("64 bits"));
    let mut bytes = vec![0xee; len];
    let mut filled = 0;
    while filled < len {
        match file
            .read_at(&mut bytes[filled..], from + filled as u64)
            .expect("readable")
        {
            0 => break,
            more => filled += more,
        }
    }
    bytes.truncate(filled);
    bytes
}

#[test]
fn sparse_files_reach_to_the_last_byte() {
    if !requirement::mounts_work("files of 8 EiB") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("sparse");
        for flags in [0, libc::O_DIRECT] {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            let sparse = options.custom_flags(flags).open(&path).unwrap();
            sparse.write_all_at(b"start", 0).unwrap();
            sparse.write_all_at(b"middle", 1 << 50).unwrap();
            sparse.write_all_at(b"end", END - 3).unwrap();
            sparse.sync_all().unwrap();
            let metadata = sparse.metadata().unwrap();
            assert_eq!(metadata.len(), END);
            assert!(
                metadata.blocks() * 512 < 1 << 20,
                "{} blocks",
                metadata.blocks()
            );
            assert_eq!(read(&sparse, 0, 7), b"start\0\0");
            assert_eq!(read(&sparse, (1 << 50) - 2, 10), b"\0\0middle\0\0");
            assert_eq!(read(&sparse, END - 5, 100), b"\0\0end");
            // The kernel itself refuses ranges that end past the largest offset.
            assert_eq!(errno(sparse.write_at(b"x", END)), Errno::INVAL);
            assert_eq!(sparse.write_at(b"y", END - 1).unwrap(), 1);
            assert_eq!(errno(ftruncate(&sparse, END + 1)), Errno::INVAL);
        }
        let mut other = OpenOptions::new().write(true).open(&path).unwrap();
        other.set_len(0).unwrap();
        other.set_len(END).unwrap();
        other.write_all(b"again").unwrap();
        drop(other);
        let mounted = mounted.remounted();
        let again = File::open(mounted.mount.join("sparse")).unwrap();
        assert_eq!(again.metadata().unwrap().len(), END);
        assert_eq!(read(&again, 0, 7), b"again\0\0");
        assert_eq!(read(&again, END - 3, 100), b"\0\0\0");
        drop(again);
        mounted.end();
    }
}

#[test]
fn a_cut_file_grows_with_zeros() {
    if !requirement::mounts_work("truncate") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        // Within a page, at its end, within and at the end of a chunk of 128 KiB, and of what lies beside a record.
        for cut in [
            0, 1, 100, 4095, 4096, 4097, 8191, 131_071, 131_072, 131_073, 299_999,
        ] {
            for synced in [false, true] {
                let open = file(&path, &[9; 300_000]);
                if synced {
                    open.sync_all().unwrap();
                }
                open.set_len(cut).unwrap();
                assert_eq!(open.metadata().unwrap().len(), cut);
                open.set_len(400_000).unwrap();
                let bytes = read(&open, 0, 500_000);
                assert_eq!(bytes.len(), 400_000);
                let kept = usize::try_from(cut).unwrap();
                assert!(bytes[..kept].iter().all(|&byte| byte == 9), "cut at {cut}");
                assert!(bytes[kept..].iter().all(|&byte| byte == 0), "cut at {cut}");
            }
        }
        fs::create_dir(mounted.mount.join("dir")).unwrap();
        let truncate = |name: &str, len: &str| {
            let mut command = Command::new("truncate");
            hafs_tests::run(command.args(["-s", len]).arg(mounted.mount.join(name))).stderr
        };
        assert!(truncate("dir", "0").contains("Is a directory"));
        assert_eq!(truncate("file", "7"), "");
        assert_eq!(fs::read(&path).unwrap(), [9; 7]);
        mounted.end();
    }
}

#[test]
fn ranges_are_reserved_and_cleared() {
    if !requirement::mounts_work("fallocate") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        let keep = FallocateFlags::KEEP_SIZE;
        let (punch, zero) = (FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE);
        let sizes = |open: &File| {
            let metadata = open.metadata().unwrap();
            (metadata.len(), metadata.blocks() * 512)
        };
        // Reserving changes no byte, counts as used, and grows the file unless told not to.
        let open = file(&path, b"bytes");
        open.sync_all().unwrap();
        fallocate(&open, keep, 0, 1 << 20).unwrap();
        assert_eq!(sizes(&open), (5, 1 << 20));
        fallocate(&open, FallocateFlags::empty(), 0, 2 << 20).unwrap();
        assert_eq!(sizes(&open), (2 << 20, 2 << 20));
        let bytes = read(&open, 0, 3 << 20);
        assert!(bytes.starts_with(b"bytes\0") && bytes[5..].iter().all(|&byte| byte == 0));

        drop(open);

        // A hole gives whole pages back, and zeros what it only touches.
        let open = file(&path, &[7; 1 << 20]);
        open.sync_all().unwrap();
        fallocate(&open, punch | keep, 1000, 500_000).unwrap();
        open.sync_all().unwrap();
        let bytes = read(&open, 0, 2 << 20);
        let zeros = |range: std::ops::Range<usize>| bytes[range].iter().all(|&byte| byte == 0);
        let sevens = |range: std::ops::Range<usize>| bytes[range].iter().all(|&byte| byte == 7);
        assert!(sevens(0..1000) && zeros(1000..501_000) && sevens(501_000..1 << 20));
        let (len, used) = sizes(&open);
        assert_eq!(len, 1 << 20);
        assert!(
            used <= (1 << 20) - 490_000,
            "{used} bytes used after a hole"
        );
        // Beyond the end nothing is there, and nothing happens.
        fallocate(&open, punch | keep, 4 << 20, 4096).unwrap();
        assert_eq!(sizes(&open).0, 1 << 20);

        drop(open);

        // Zeros keep the space; past the end they grow the file, unless told not to.
        let open = file(&path, &[7; 1 << 20]);
        fallocate(&open, zero | keep, 1_000_000, 1 << 20).unwrap();
        assert_eq!(sizes(&open).0, 1 << 20);
        fallocate(&open, zero, 1_000_000, 1 << 20).unwrap();
        assert_eq!(sizes(&open).0, 1_000_000 + (1 << 20));
        let bytes = read(&open, 0, 4 << 20);
        assert!(bytes[..1_000_000].iter().all(|&byte| byte == 7));
        assert!(bytes[1_000_000..].iter().all(|&byte| byte == 0));
        drop(open);
        mounted.end();
    }
}

#[test]
fn ranges_that_cannot_be_reserved() {
    if !requirement::mounts_work("errors of fallocate") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let open = file(&at("file"), &[7; 100_000]);
    for flags in [
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
    ] {
        assert_eq!(errno(fallocate(&open, flags, 0, 4096)), Errno::OPNOTSUPP);
    }
    assert_eq!(read(&open, 0, 200_000), vec![7; 100_000]);
    let none = FallocateFlags::empty();
    assert_eq!(errno(fallocate(&open, none, 0, 0)), Errno::INVAL);
    assert_eq!(errno(fallocate(&open, none, END, 1)), Errno::FBIG);
    let reader = File::open(at("file")).unwrap();
    assert_eq!(errno(fallocate(&reader, none, 0, 10)), Errno::BADF);
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o644), 0).unwrap();
    let fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .open(at("fifo"))
        .unwrap();
    assert_eq!(errno(fallocate(&fifo, none, 0, 10)), Errno::SPIPE);
    drop((open, reader, fifo));
    mounted.end();
}

#[test]
fn copies_within_and_between_files() {
    if !requirement::mounts_work("copy_file_range") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let at = |name: &str| mounted.mount.join(name);
        let bytes: Vec<u8> = (0..700_000_u32).map(|n| (n / 3).to_le_bytes()[0]).collect();
        let from = file(&at("from"), &bytes);
        let to = file(&at("to"), b"0123456789");
        let copy = |from: &File, mut at: u64, to: &File, mut into: u64, len: usize| {
            copy_file_range(from, Some(&mut at), to, Some(&mut into), len)
        };
        // What is still in the cache of either file counts.
        let mut done = 0;
        while done < 600_000 {
            let at = 1000 + done as u64;
            match copy(&from, at, &to, 5 + done as u64, 600_000 - done).unwrap() {
                0 => panic!("nothing copied at {done}"),
                more => done += more,
            }
        }
        let copied = fs::read(at("to")).unwrap();
        assert_eq!((&copied[..5], copied.len()), (&b"01234"[..], 600_005));
        assert!(copied[5..] == bytes[1000..601_000]);
        // The source's end ends the copy; past it there is nothing.
        assert_eq!(copy(&from, 699_990, &to, 0, 100).unwrap(), 10);
        assert_eq!(copy(&from, 700_000, &to, 0, 100).unwrap(), 0);
        assert_eq!(copy(&from, 1 << 40, &to, 0, 100).unwrap(), 0);
        // Within one file, beside each other and far away.
        assert_eq!(copy(&to, 0, &to, 700_000, 5).unwrap(), 5);
        assert_eq!(read(&to, 700_000, 100), fs::read(at("to")).unwrap()[..5]);
        assert_eq!(errno(copy(&to, 0, &to, 50, 100)), Errno::INVAL);
        // Descriptors that do not fit.
        let reader = File::open(at("to")).unwrap();
        assert_eq!(errno(copy(&from, 0, &reader, 0, 10)), Errno::BADF);
        let appender = OpenOptions::new().append(true).open(at("to")).unwrap();
        assert_eq!(errno(copy(&from, 0, &appender, 0, 10)), Errno::BADF);
        let dir = File::open(mounted.mount.path()).unwrap();
        assert_eq!(errno(copy(&dir, 0, &to, 0, 10)), Errno::ISDIR);
        let outside = file(&mounted.scratch.join("outside"), b"");
        assert_eq!(errno(copy(&from, 0, &outside, 0, 10)), Errno::XDEV);
        assert_eq!(errno(ioctl_ficlone(&to, &from)), Errno::OPNOTSUPP);
        drop((from, to, reader, appender, dir));
        mounted.end();
    }
}

#[test]
fn reads_and_writes_at_the_edges() {
    if !requirement::mounts_work("reads past the end and empty writes") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        for flags in [0, libc::O_DIRECT] {
            let open = options.custom_flags(flags).open(&path).unwrap();
            open.write_all_at(&[3; 5000], 0).unwrap();
            let mut buffer = [0; 10_000];
            assert_eq!(open.read_at(&mut buffer, 4990).unwrap(), 10);
            assert_eq!(open.read_at(&mut buffer, 5000).unwrap(), 0);
            assert_eq!(open.read_at(&mut buffer, 1 << 40).unwrap(), 0);
            assert_eq!(open.read_at(&mut buffer[..0], 0).unwrap(), 0);
            // An empty write beyond the end does not grow the file.
            assert_eq!(open.write_at(b"", 1 << 30).unwrap(), 0);
            assert_eq!(open.metadata().unwrap().len(), 5000);
            // A write beyond the end leaves a hole of zeros.
            open.write_all_at(b"x", 9000).unwrap();
            let bytes = read(&open, 0, 20_000);
            assert!(bytes[5000..9000].iter().all(|&byte| byte == 0));
            assert_eq!((bytes.len(), bytes[4999], bytes[9000]), (9001, 3, b'x'));
            // Each descriptor sees at once what another wrote.
            let other = File::open(&path).unwrap();
            open.write_all_at(b"fresh", 100).unwrap();
            assert_eq!(read(&other, 100, 5), b"fresh");
        }
        mounted.end();
    }
}

#[test]
fn fifos_sockets_and_devices_work() {
    if !requirement::mounts_work("special files") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let make = |name: &str, kind, device| mknodat(CWD, at(name), kind, Mode::from(0o666), device);
    make("fifo", FileType::Fifo, 0).unwrap();
    make("socket", FileType::Socket, 0).unwrap();
    make("null", FileType::CharacterDevice, makedev(1, 3)).unwrap();
    make("disk", FileType::BlockDevice, makedev(259, 1_000_000)).unwrap();
    make("plain", FileType::RegularFile, 0).unwrap();

    let fifo = OpenOptions::new().read(true).write(true).open(at("fifo"));
    let mut fifo = fifo.unwrap();
    fifo.write_all(b"through").unwrap();
    let mut buffer = [0; 7];
    fifo.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"through");
    let mut null = OpenOptions::new()
        .read(true)
        .write(true)
        .open(at("null"))
        .unwrap();
    null.write_all(&[1; 100_000]).unwrap();
    assert_eq!(null.read(&mut buffer).unwrap(), 0);
    assert_eq!(
        errno(open(at("socket"), OFlags::RDONLY, Mode::empty())),
        Errno::NXIO
    );
    let listener = UnixListener::bind(at("listening")).unwrap();
    let mut caller = UnixStream::connect(at("listening")).unwrap();
    let (mut called, _) = listener.accept().unwrap();
    caller.write_all(b"called").unwrap();
    called.read_exact(&mut buffer[..6]).unwrap();
    assert_eq!(&buffer[..6], b"called");
    drop((fifo, null, listener, caller, called));

    let mounted = mounted.remounted();
    let metadata = |name: &str| fs::symlink_metadata(mounted.mount.join(name)).unwrap();
    assert!(metadata("fifo").file_type().is_fifo());
    assert!(metadata("socket").file_type().is_socket());
    assert!(metadata("listening").file_type().is_socket());
    assert!(metadata("plain").is_file());
    let (null, disk) = (metadata("null"), metadata("disk"));
    assert!(null.file_type().is_char_device() && disk.file_type().is_block_device());
    assert_eq!(null.rdev(), makedev(1, 3));
    assert_eq!(disk.rdev(), makedev(259, 1_000_000));
    mounted.end();
}
