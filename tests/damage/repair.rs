//! The way on for who has one copy: what a repair says, what it cuts, and what it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hafs_fs::{FsError, Ino};

use crate::layout::{self, frames, mark};
use crate::store::{Copy, End, Prepared, files_of};

/// All bytes of a store but those that RocksDB writes at each opening.
fn bytes_of(copy: &Copy<'_>) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let files = files_of(&copy.path()).into_iter();
    files
        .filter(|(path, _)| !path.starts_with("state"))
        .map(|(path, _)| {
            let bytes = fs::read(copy.path().join(&path)).unwrap();
            (path, bytes)
        })
        .collect()
}

/// A store whose log is hit in the middle of what was synced, and the record that is hit.
fn hit_in_the_middle(prepared: &Prepared) -> (Copy<'_>, u64) {
    let synced = mark(&prepared.path());
    let all = frames(&prepared.path());
    let frame = all.iter().find(|frame| frame.lsn == synced / 2).unwrap();
    let copy = prepared.copy();
    copy.flip(&frame.file, frame.offset + 60, 1);
    (copy, frame.lsn)
}

#[test]
fn a_look_changes_nothing_and_says_what_is_lost() {
    let prepared = Prepared::new(End::Crashed);
    let synced = mark(&prepared.path());
    let (copy, hit) = hit_in_the_middle(&prepared);
    let before = bytes_of(&copy);
    let plan = copy.repair(false).unwrap();
    let loss = plan.loss.clone().unwrap();
    assert_eq!((loss.from.0, loss.synced.0), (hit, synced));
    assert_eq!(loss.synced_records(), synced - hit + 1);
    assert!(
        loss.newest.0 > synced,
        "unsynced records are there too: {loss}"
    );
    assert!(loss.kept_until.is_some(), "{loss}");
    assert!(
        plan.loses() && !plan.done && plan.kept_in.is_none(),
        "{plan:?}"
    );
    assert_eq!(bytes_of(&copy), before);
    // It says the same to who opens it.
    let FsError::LogLost(refused) = copy.verdict().refused() else {
        panic!("of another kind");
    };
    assert_eq!(*refused, loss);
}

#[test]
fn what_is_accepted_is_cut_kept_aside_and_remembered() {
    let prepared = Prepared::new(End::Crashed);
    let (copy, hit) = hit_in_the_middle(&prepared);
    let repair = copy.repair(true).unwrap();
    assert!(repair.done, "{repair:?}");
    let kept_in = repair.kept_in.unwrap();
    assert!(
        kept_in.starts_with(copy.path().join("lost")),
        "{}",
        kept_in.display()
    );
    let kept: Vec<_> = files_of(&kept_in);
    assert_eq!(
        kept.len(),
        2,
        "the file that was cut, and the one behind it: {kept:?}"
    );
    assert!(copy.repair(false).unwrap().is_needless());

    let volume = copy.open().unwrap();
    let report = volume.check(&mut |_, _| {}).unwrap();
    assert_eq!(report.problems, vec![]);
    assert_eq!(report.losses.len(), 1, "{:?}", report.losses);
    assert_eq!(report.losses[0].from.0, hit);
    // What is there is true, and the volume takes changes that survive.
    for (name, content) in &prepared.files {
        if let Ok(attr) = volume.lookup(Ino::ROOT, name.as_bytes()) {
            let bytes = volume.read(attr.ino, 0, 1 << 20).unwrap();
            assert!(
                content.bytes.starts_with(&bytes) || name == "overwritten",
                "{name}"
            );
        }
    }
    let ino = volume
        .mknod(
            hafs_fs::Caller::ROOT,
            Ino::ROOT,
            b"new",
            libc::S_IFREG | 0o644,
            0,
        )
        .unwrap()
        .ino;
    volume.write(ino, 0, &[9; 200_000], false, false).unwrap();
    volume.sync().unwrap();
    volume.crash();
    let volume = copy.open_again(101).unwrap();
    assert_eq!(volume.read(ino, 0, 200_000).unwrap(), [9; 200_000]);
    let report = volume.check(&mut |_, _| {}).unwrap();
    assert_eq!((report.problems, report.losses.len()), (vec![], 1));
}

#[test]
fn a_mark_that_is_gone_is_made_anew_by_who_accepts_it() {
    for end in [End::Crashed, End::Clean] {
        let prepared = Prepared::new(end);
        let copy = prepared.copy();
        fs::remove_file(copy.path().join("mark")).unwrap();
        let refused = copy.verdict().refused().to_string();
        assert!(refused.contains("mark is missing"), "{refused}");
        let plan = copy.repair(false).unwrap();
        assert!(
            plan.mark.is_some() && plan.loses() && plan.loss.is_none(),
            "{plan:?}"
        );
        assert!(!copy.path().join("mark").exists(), "only a look");
        assert!(copy.repair(true).unwrap().done);
        copy.verdict().unhurt();
    }
}

#[test]
fn a_whole_store_needs_no_repair() {
    for end in [End::Crashed, End::Clean] {
        let prepared = Prepared::new(end);
        let copy = prepared.copy();
        let before = bytes_of(&copy);
        let repair = copy.repair(true).unwrap();
        assert!(repair.is_needless() && !repair.done, "{repair:?}");
        assert_eq!(bytes_of(&copy), before);
        copy.verdict().unhurt();
    }
}

#[test]
fn a_log_whose_file_is_gone_is_refused_and_repaired() {
    let prepared = Prepared::new(End::Crashed);
    for file in layout::files(&prepared.path(), "log", "log") {
        let copy = prepared.copy();
        fs::remove_file(copy.path().join(&file)).unwrap();
        let FsError::LogLost(loss) = copy.verdict().refused() else {
            panic!("of another kind");
        };
        assert!(loss.synced >= loss.from, "{loss}");
        assert!(copy.repair(true).unwrap().done);
        let volume = copy.open().unwrap();
        let report = volume.check(&mut |_, _| {}).unwrap();
        assert_eq!(report.problems, vec![], "{}", Path::new(&file).display());
    }
}
