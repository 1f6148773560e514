//! Names: any bytes, deep trees, links of both kinds, moved directories, inode numbers.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use hafs_tests::{requirement, run};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, mkdirat, open, openat, readlinkat,
    renameat_with,
};
use rustix::io::Errno;

use crate::Mounted;
use crate::errno::{errno, file};
use crate::user::{as_user, on_hafs_and_ext4};

#[test]
fn names_are_any_bytes_but_slash_and_nul() {
    if !requirement::mounts_work("names") {
        return;
    }
    let mounted = Mounted::new();
    let mut names: BTreeSet<OsString> = (1..=255_u8)
        .filter(|byte| *byte != b'/')
        .map(|byte| OsString::from_vec(vec![b'n', byte, b'x']))
        .collect();
    let more: [&[u8]; 12] = [
        b"...",
        b" ",
        b"ends with a blank ",
        b"-rf",
        b"\n",
        b"\xff\xfe\x00\x01".split_at(2).0,
        "\u{e4}".as_bytes(), // composed and decomposed are two names
        "a\u{308}".as_bytes(),
        b"case",
        b"CASE",
        &[b'm'; 255],
        &[0xc3; 255],
    ];
    names.extend(more.map(|name| OsStr::from_bytes(name).to_owned()));
    for name in &names {
        fs::write(mounted.mount.path().join(name), name.as_bytes()).unwrap();
    }
    let mounted = mounted.remounted();
    let listed = fs::read_dir(mounted.mount.path()).unwrap();
    let listed: BTreeSet<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed, names);
    for name in &names {
        let bytes = fs::read(mounted.mount.path().join(name)).unwrap();
        assert_eq!(bytes, name.as_bytes());
    }
    for name in [&[b'm'; 256][..], &[0xc3; 300]] {
        let long = File::create(mounted.mount.path().join(OsStr::from_bytes(name)));
        assert_eq!(errno(long), Errno::NAMETOOLONG);
    }
    mounted.end();
}

#[test]
fn trees_may_be_deeper_than_a_path_is_long() {
    if !requirement::mounts_work("deep trees") {
        return;
    }
    const DEPTH: usize = 1500;
    let mounted = Mounted::new();
    let name = "d".repeat(100);
    let dirs = OFlags::RDONLY | OFlags::DIRECTORY;
    let down = |step: &mut dyn FnMut(&OwnedFd)| {
        let mut dir = open(mounted.mount.path(), dirs, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            step(&dir);
            dir = openat(&dir, &name, dirs, Mode::empty()).unwrap();
        }
        dir
    };
    let deepest = down(&mut |dir| mkdirat(dir, &name, Mode::from(0o755)).unwrap());
    let made = openat(
        &deepest,
        "leaf",
        OFlags::CREATE | OFlags::RDWR,
        Mode::from(0o644),
    );
    rustix::io::write(made.unwrap(), b"deep").unwrap();
    drop(deepest);
    // A single path of that length is refused by the kernel, and `..` finds the way back.
    let path: PathBuf = std::iter::repeat_n(&name, DEPTH).collect();
    assert_eq!(
        errno(fs::metadata(mounted.mount.path().join(path))),
        Errno::NAMETOOLONG
    );
    let mut dir = down(&mut |_| {});
    for _ in 0..DEPTH {
        dir = openat(&dir, "..", dirs, Mode::empty()).unwrap();
    }
    let root = File::from(dir).metadata().unwrap();
    assert_eq!(
        root.ino(),
        fs::metadata(mounted.mount.path()).unwrap().ino()
    );
    let mounted = mounted.remounted();
    run(Command::new("rm").arg("-r").arg(mounted.mount.join(&name))).ok();
    assert_eq!(fs::read_dir(mounted.mount.path()).unwrap().count(), 0);
    mounted.end();
}

#[test]
fn hard_links_are_one_file() {
    if !requirement::mounts_work("hard links") {
        return;
    }
    const LINKS: u64 = 3000;
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let first = file(&at("first"), b"bytes");
    fs::create_dir(at("dir")).unwrap();
    for number in 1..LINKS {
        fs::hard_link(at("first"), at(&format!("dir/{number}"))).unwrap();
    }
    assert_eq!(first.metadata().unwrap().nlink(), LINKS);
    let last = at(&format!("dir/{}", LINKS - 1));
    assert_eq!(
        last.metadata().unwrap().ino(),
        first.metadata().unwrap().ino()
    );
    fs::write(&last, "other bytes").unwrap();
    assert_eq!(fs::read(at("first")).unwrap(), b"other bytes");
    for number in 1..LINKS - 1 {
        fs::remove_file(at(&format!("dir/{number}"))).unwrap();
    }
    fs::remove_file(at("first")).unwrap();
    assert_eq!(last.metadata().unwrap().nlink(), 1);
    // A link to a link is a link to the link itself; with AT_SYMLINK_FOLLOW to what it names.
    symlink("dir", at("symlink")).unwrap();
    fs::hard_link(at("symlink"), at("again")).unwrap();
    assert!(at("again").symlink_metadata().unwrap().is_symlink());
    symlink(&last, at("to-file")).unwrap();
    linkat(
        CWD,
        at("to-file"),
        CWD,
        at("followed"),
        AtFlags::SYMLINK_FOLLOW,
    )
    .unwrap();
    assert_eq!(last.metadata().unwrap().nlink(), 2);
    drop(first);
    mounted.end();
}

#[test]
fn symbolic_links_hold_any_target() {
    if !requirement::mounts_work("symbolic links") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let longest = "t/".repeat(2047) + "t";
    symlink(&longest, at("long")).unwrap();
    assert_eq!(
        errno(symlink(longest.clone() + "t", at("x"))),
        Errno::NAMETOOLONG
    );
    symlink(OsStr::from_bytes(b"\xff\n no utf-8"), at("bytes")).unwrap();
    symlink("a", at("b")).unwrap();
    symlink("b", at("a")).unwrap();
    assert_eq!(errno(File::open(at("a"))), Errno::LOOP);
    // Forty are followed, no more.
    fs::write(at("0"), "end").unwrap();
    for number in 1..=41 {
        symlink((number - 1).to_string(), at(&number.to_string())).unwrap();
    }
    assert_eq!(fs::read(at("40")).unwrap(), b"end");
    assert_eq!(errno(fs::read(at("41"))), Errno::LOOP);
    let mounted = mounted.remounted();
    let at = |name: &str| mounted.mount.join(name);
    assert_eq!(
        fs::read_link(at("long")).unwrap().as_os_str(),
        longest.as_str()
    );
    let bytes = readlinkat(CWD, at("bytes"), Vec::new()).unwrap();
    assert_eq!(bytes.as_bytes(), b"\xff\n no utf-8");
    let metadata = at("long").symlink_metadata().unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o7777), (4095, 0o777));
    mounted.end();
}

#[test]
fn moved_directories_know_their_new_parent() {
    if !requirement::mounts_work("rename of directories") {
        return;
    }
    let mounted = Mounted::new();
    let at = |name: &str| mounted.mount.join(name);
    let links = |name: &str| fs::metadata(at(name)).unwrap().nlink();
    fs::create_dir_all(at("a/moved/inner")).unwrap();
    fs::create_dir(at("b")).unwrap();
    fs::write(at("a/moved/inner/file"), "kept").unwrap();
    let inside = open(at("a/moved"), OFlags::PATH, Mode::empty()).unwrap();
    assert_eq!((links("a"), links("b")), (3, 2));
    fs::rename(at("a/moved"), at("b/here")).unwrap();
    assert_eq!((links("a"), links("b")), (2, 3));
    assert_eq!(fs::read(at("b/here/inner/file")).unwrap(), b"kept");
    let parent = openat(&inside, "..", OFlags::PATH, Mode::empty()).unwrap();
    let parent = File::from(parent).metadata().unwrap().ino();
    assert_eq!(parent, fs::metadata(at("b")).unwrap().ino());
    assert_eq!(errno(fs::rename(at("b"), at("b/here/b"))), Errno::INVAL);
    // An empty directory is replaced, and whoever is in it is nowhere: nothing can be made there.
    fs::create_dir(at("empty")).unwrap();
    let gone = open(at("empty"), OFlags::RDONLY, Mode::empty()).unwrap();
    fs::rename(at("b/here"), at("empty")).unwrap();
    let made = openat(&gone, "x", OFlags::CREATE | OFlags::RDWR, Mode::from(0o644));
    assert_eq!(errno(made), Errno::NOENT);
    assert_eq!(fs::read(at("empty/inner/file")).unwrap(), b"kept");
    // Two names of one file: the rename does nothing, and both stay.
    fs::write(at("one"), "x").unwrap();
    fs::hard_link(at("one"), at("two")).unwrap();
    fs::rename(at("one"), at("two")).unwrap();
    assert!(at("one").exists() && at("two").exists());
    drop((inside, gone));
    mounted.end();
}

#[test]
fn inode_numbers_stay_and_are_never_used_again() {
    if !requirement::mounts_work("inode numbers") {
        return;
    }
    let mounted = Mounted::new();
    let ino = |mounted: &Mounted, name: &str| fs::metadata(mounted.mount.join(name)).unwrap().ino();
    let mut used = BTreeSet::new();
    for round in 0..3 {
        for number in 0..100 {
            let name = mounted.mount.join(&format!("{number}"));
            File::create_new(&name).unwrap();
            let ino = fs::metadata(&name).unwrap().ino();
            assert!(used.insert(ino), "inode {ino} twice, in round {round}");
            fs::remove_file(&name).unwrap();
        }
    }
    fs::create_dir(mounted.mount.join("dir")).unwrap();
    fs::write(mounted.mount.join("dir/file"), "x").unwrap();
    let before = ["", "dir", "dir/file"].map(|name| ino(&mounted, name));
    fs::rename(mounted.mount.join("dir"), mounted.mount.join("other")).unwrap();
    let mounted = mounted.remounted();
    let after = ["", "other", "other/file"].map(|name| ino(&mounted, name));
    assert_eq!(before, after);
    File::create_new(mounted.mount.join("new")).unwrap();
    assert!(used.insert(ino(&mounted, "new")) && !before.contains(&ino(&mounted, "new")));
    mounted.end();
}

/// What is at `path`: kind and mode, owner, group, links, device; and a file's bytes, or a directory's names.
fn what_is(path: &Path) -> String {
    let Ok(is) = rustix::fs::lstat(path) else {
        return "nothing".to_owned();
    };
    let holds = match FileType::from_raw_mode(is.st_mode) {
        FileType::RegularFile => fs::read_to_string(path).expect("root may"),
        FileType::Directory => {
            let names = fs::read_dir(path).expect("root may");
            let names: BTreeSet<_> = names
                .map(|name| name.expect("an entry").file_name())
                .collect();
            format!("{names:?}")
        }
        _ => String::new(),
    };
    let (mode, owner) = (is.st_mode, (is.st_uid, is.st_gid));
    format!(
        "{mode:o} {owner:?} {} {:#x} {holds}",
        is.st_nlink, is.st_rdev
    )
}

/// A directory with something of every kind in it.
fn furnish(dir: &Path) {
    for sub in [
        "",
        "full/inner",
        "full2/inner",
        "empty",
        "setgid",
        "sticky",
        "closed",
        "listed",
    ] {
        fs::create_dir_all(dir.join(sub)).expect("a new directory");
    }
    for (sub, mode) in [
        ("", 0o777),
        ("setgid", 0o2777),
        ("sticky", 0o1777),
        ("closed", 0o755),
        ("listed", 0o777),
    ] {
        fs::set_permissions(dir.join(sub), fs::Permissions::from_mode(mode)).expect("root may");
    }
    chown(dir.join("setgid"), None, Some(2000)).expect("root may");
    run(Command::new("setfacl")
        .args(["-d", "-m", "u:1000:rwx"])
        .arg(dir.join("listed")))
    .ok();
    for name in [
        "a",
        "b",
        "setgid/a",
        "sticky/roots",
        "sticky/mine",
        "closed/a",
        "listed/a",
    ] {
        fs::write(dir.join(name), name).expect("room");
    }
    chown(dir.join("sticky/mine"), Some(1000), Some(1000)).expect("root may");
    symlink("nowhere", dir.join("link")).expect("a new name");
    fs::hard_link(dir.join("a"), dir.join("again")).expect("a new name");
}

/// renameat2(2) with flags, as uid: what came of it and what is there afterwards. Each in a directory of its own.
fn renamed(place: &Path) -> Vec<String> {
    const WHITEOUT: RenameFlags = RenameFlags::WHITEOUT;
    let exclusive = WHITEOUT.union(RenameFlags::NOREPLACE);
    let exchange = WHITEOUT.union(RenameFlags::EXCHANGE);
    let both = exclusive.union(exchange);
    let cases = [
        ("a", "new", WHITEOUT, 0),
        ("a", "b", WHITEOUT, 0),
        ("a", "new", exclusive, 0),
        ("a", "b", exclusive, 0),
        ("a", "b", exchange, 0),
        ("a", "b", both, 0),
        ("missing", "b", WHITEOUT, 0),
        ("a", "a", WHITEOUT, 0),
        ("a", "again", WHITEOUT, 0),
        ("link", "new", WHITEOUT, 0),
        ("a", "setgid/new", WHITEOUT, 0),
        ("setgid/a", "new", WHITEOUT, 0),
        ("setgid/a", "new", WHITEOUT, 1000),
        ("listed/a", "new", WHITEOUT, 0),
        ("a", "full/new", WHITEOUT, 0),
        ("full", "new", WHITEOUT, 0),
        ("full", "empty", WHITEOUT, 0),
        ("full", "full2", WHITEOUT, 0),
        ("full", "full/inner/new", WHITEOUT, 0),
        ("full/inner", "new", WHITEOUT, 0),
        ("full", "a", WHITEOUT, 0),
        ("a", "empty", WHITEOUT, 0),
        ("a", "new", WHITEOUT, 1000),
        ("a", "b", WHITEOUT, 1000),
        ("sticky/roots", "new", WHITEOUT, 1000),
        ("sticky/mine", "new", WHITEOUT, 1000),
        ("closed/a", "new", WHITEOUT, 1000),
    ];
    let mut seen = Vec::new();
    for (number, (from, to, flags, uid)) in cases.into_iter().enumerate() {
        let dir = place.join(format!("whiteout-{number}"));
        furnish(&dir);
        let (old, new) = (dir.join(from), dir.join(to));
        let rename = || renameat_with(CWD, &old, CWD, &new, flags);
        let result = match uid {
            0 => rename(),
            _ => as_user(uid, uid, &[], rename),
        };
        let parents = [&old, &new].map(|path| what_is(path.parent().expect("within the place")));
        let (old, new) = (what_is(&old), what_is(&new));
        seen.push(format!(
            "{from} -> {to}, {flags:?} by {uid}: {result:?}\n old: {old}\n new: {new}\n in: {parents:?}"
        ));
    }
    seen
}

#[test]
fn whiteouts_are_those_of_ext4() {
    if !requirement::mounts_work("RENAME_WHITEOUT") {
        return;
    }
    let mounted = Mounted::new();
    let places = on_hafs_and_ext4(&mounted);
    let [hafs, ext4] = [0, 1].map(|at| renamed(places.iter().nth(at).expect("one of the two")));
    for (hafs, ext4) in hafs.iter().zip(&ext4) {
        assert_eq!(hafs, ext4, "hafs, then ext4");
    }
    for (number, expected) in [
        (
            0,
            "a -> new, RenameFlags(WHITEOUT) by 0: Ok(())\n old: 20000 (0, 0) 1 0x0 \n new: 100644",
        ),
        (
            2,
            "a -> new, RenameFlags(NOREPLACE | WHITEOUT) by 0: Ok(())\n old: 20000",
        ),
        (
            3,
            "a -> b, RenameFlags(NOREPLACE | WHITEOUT) by 0: Err(Os { code: 17",
        ),
        (
            4,
            "a -> b, RenameFlags(EXCHANGE | WHITEOUT) by 0: Err(Os { code: 22",
        ),
        (
            22,
            "a -> new, RenameFlags(WHITEOUT) by 1000: Ok(())\n old: 20000 (1000, 1000)",
        ),
    ] {
        assert!(hafs[number].starts_with(expected), "{}", hafs[number]);
    }
    let old = places.iter().next().unwrap().join("whiteout-0/a");
    let before = what_is(&old);
    drop(places);
    let mounted = mounted.remounted();
    assert_eq!(what_is(&old), before, "after a restart");
    fs::remove_file(&old).unwrap();
    mounted.end();
}
