//! Failures that random cases found, shrunk, each as a test that names what went wrong.

use hafs_fs::{Caller, FallocateMode, Profile, RenameMode};

use crate::machine::replay;
use crate::op::{Name, Op};
use crate::reference::{ROOT, Reference};

const FILE: u32 = 1;

/// A volume of 3 MiB with an empty file, then these operations.
fn on_a_file(ops: Vec<Op>) {
    let reference = Reference::small(3 << 20, Profile::Auto, 16 << 10);
    let mode = libc::S_IFREG | 0o644;
    let make = Op::Mknod {
        id: FILE,
        caller: Caller::ROOT,
        parent: ROOT,
        name: Name(0),
        mode,
        rdev: 0,
    };
    replay(reference, [vec![make], ops].concat());
}

fn write(offset: u64, len: usize) -> Op {
    Op::Write {
        node: FILE,
        offset,
        len,
        seed: 1,
        kill_priv: false,
        cached: false,
    }
}

fn truncate(size: u64) -> Op {
    Op::Truncate {
        node: FILE,
        caller: Caller::ROOT,
        size,
    }
}

fn fallocate(offset: u64, len: u64, mode: FallocateMode) -> Op {
    Op::Fallocate {
        node: FILE,
        caller: Caller::ROOT,
        offset,
        len,
        mode,
    }
}

/// The range was emptied before it turned out that it could not be reserved.
#[test]
fn zeroing_a_range_that_does_not_fit_leaves_the_bytes() {
    let zero = FallocateMode::ZeroRange { keep_size: false };
    on_a_file(vec![write(131_068, 8100), fallocate(0, 4 << 20, zero)]);
}

/// Space reserved past the end stayed, though nothing could ever use it.
#[test]
fn a_cut_to_the_same_length_gives_reserved_space_back() {
    let reserve = FallocateMode::Allocate { keep_size: true };
    on_a_file(vec![
        write(0, 30_000),
        fallocate(29_000, 9000, reserve),
        truncate(30_000),
    ]);
}

/// The copy went on into the bytes that it had just appended itself.
#[test]
fn a_copy_within_a_file_ends_at_the_old_end() {
    let copy = Op::Copy {
        from: FILE,
        from_offset: 12_253,
        to: FILE,
        to_offset: 16_301,
        len: 4048,
    };
    on_a_file(vec![write(0, 16_300), copy]);
}

/// Linux changes nothing where both names are of one inode.
#[test]
fn exchanging_a_name_with_itself_changes_no_time() {
    let (at, mode) = ((ROOT, Name(0)), RenameMode::Exchange);
    on_a_file(vec![Op::Rename {
        whiteout: 2,
        from: at,
        to: at,
        mode,
    }]);
}

/// Reserving space within a file counts as a change of it, as on ext4.
#[test]
fn reserving_space_changes_mtime() {
    let reserve = FallocateMode::Allocate { keep_size: false };
    on_a_file(vec![
        write(0, 10_000),
        fallocate(100, 2000, reserve),
        Op::Crash,
    ]);
}
