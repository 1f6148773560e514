//! Files of every kind that are cut, half empty, all zeros, or gone.

use std::fs;
use std::path::Path;

use hafs_fs::FsError;

use crate::layout;
use crate::store::{Copy, End, Prepared, Verdict, files_of};

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Stolen,
    Empty,
    CutInHalf,
    /// The length is there, the second half was never written.
    HalfWritten,
    Zeroed,
}

const HARMS: [Harm; 5] = [
    Harm::Stolen,
    Harm::Empty,
    Harm::CutInHalf,
    Harm::HalfWritten,
    Harm::Zeroed,
];

fn harm(copy: &Copy<'_>, file: &Path, harm: Harm) {
    let path = copy.path().join(file);
    let mut bytes = fs::read(&path).unwrap();
    let half = bytes.len() / 2;
    match harm {
        Harm::Stolen => return fs::remove_file(path).unwrap(),
        Harm::Empty => bytes.clear(),
        Harm::CutInHalf => bytes.truncate(half),
        Harm::HalfWritten => bytes[half..].fill(0),
        Harm::Zeroed => bytes.fill(0),
    }
    fs::write(path, bytes).unwrap();
}

/// What a store of each kind says to harm of each file: never wrong bytes (reading back sees to that), and never nothing
/// where something is lost.
#[test]
fn every_file_of_a_store_may_be_harmed_in_every_way() {
    for end in [End::Clean, End::Crashed] {
        let prepared = Prepared::new(end);
        for (file, len) in files_of(&prepared.path()) {
            for how in HARMS {
                if len == 0 && how != Harm::Stolen {
                    continue;
                }
                let copy = prepared.copy();
                harm(&copy, &file, how);
                let what = format!("{end:?}: {how:?} {}", file.display());
                judge(copy.verdict(), &file, end, how, &what);
            }
        }
    }
}

fn judge(verdict: Verdict, file: &Path, end: End, how: Harm, what: &str) {
    let name = file.to_str().unwrap();
    let is = |part: &str| name.contains(part);
    if is("volume") {
        let error = verdict.refused();
        assert!(
            matches!(error, FsError::Refused(_) | FsError::Io { .. }),
            "{what}: {error}"
        );
    } else if is("mark") && how == Harm::HalfWritten {
        verdict.told("one of the two durable marks is damaged", file); // one slot is there
    } else if is("mark") && how == Harm::CutInHalf {
        verdict.opened();
    } else if is("mark") {
        let error = verdict.refused().to_string();
        assert!(error.contains("mark is "), "{what}: {error}");
    } else if is(".seg") {
        let opened = verdict.opened();
        let report = opened.report.unwrap();
        let hurt = how != Harm::HalfWritten || !opened.errors.is_empty();
        assert_eq!(report.problem_count > 0, hurt, "{what}: {report:?}");
        for (name, error) in &opened.errors {
            let FsError::Damaged { ino, .. } = error else {
                panic!("{what}: {error}");
            };
            let listed = report.problems.iter().any(|problem| {
                problem.ino == Some(*ino) && problem.path.as_deref() == Some(&format!("/{name}"))
            });
            assert!(listed, "{what}: {name} is not listed");
        }
        if matches!(how, Harm::Stolen | Harm::Empty | Harm::Zeroed) {
            assert!(!opened.errors.is_empty(), "{what}");
        }
    } else if is(".log") {
        judge_log(verdict, end, what);
    } else if is("state/MANIFEST") && matches!(how, Harm::CutInHalf | Harm::HalfWritten) {
        // RocksDB takes an older state for the newest. The log goes on from there, or says that it does not reach back.
        if let Verdict::Opened(opened) = verdict {
            assert!(opened.is_unhurt(), "{what}: {opened:?}");
        }
    } else if is("state/CURRENT") || is("state/MANIFEST") {
        let Verdict::Refused(error) = verdict else {
            panic!("{what}: not refused");
        };
        assert!(matches!(error, FsError::StateLost(_)), "{what}: {error}");
    } else if is(".sst") && how != Harm::HalfWritten {
        let error = verdict.refused();
        assert!(
            matches!(error, FsError::StateLost(_) | FsError::State(_)),
            "{what}: {error}"
        );
    } else if is(".sst") {
        // It has its length, so RocksDB sees only when it reads it.
        if let Verdict::Opened(opened) = verdict {
            assert!(!opened.is_unhurt(), "{what}: {opened:?}");
        }
    } else if is("state/") {
        // What is left of RocksDB's: true bytes or errors, which reading back has seen to.
    } else {
        assert!(
            is("lock") || is("spare-") || is("ballast"),
            "a file of an unknown kind: {what}"
        );
        verdict.unhurt();
    }
}

/// A closed volume needs nothing of its log; after a crash, what was synced is there or it is refused.
fn judge_log(verdict: Verdict, end: End, what: &str) {
    match (verdict, end) {
        (verdict, End::Clean) => drop(verdict.unhurt()),
        (Verdict::Refused(FsError::LogLost(loss)), End::Crashed) => {
            assert!(loss.synced >= loss.from, "{what}: {loss}");
        }
        (Verdict::Refused(error), End::Crashed) => panic!("{what}: {error}"),
        (Verdict::Opened(opened), End::Crashed) => {
            assert!(opened.is_unhurt(), "{what}: {opened:?}")
        }
    }
}

/// The number of a segment that is gone is not given to a new one: rows may name places in it.
#[test]
fn a_stolen_segment_is_not_replaced_by_a_new_one() {
    for end in [End::Clean, End::Crashed] {
        let prepared = Prepared::new(end);
        let newest = layout::files(&prepared.path(), "segments", "seg")
            .pop()
            .unwrap();
        let copy = prepared.copy();
        fs::remove_file(copy.path().join(&newest)).unwrap();
        let volume = copy.open().unwrap();
        let before = volume.check(&mut |_, _| {}).unwrap().problem_count;
        assert!(before > 0);
        let content = &prepared.files["empty"];
        volume
            .write(content.ino, 0, &[1; 300_000], false, false)
            .unwrap();
        assert!(!copy.path().join(&newest).exists(), "{}", newest.display());
        assert_eq!(volume.read(content.ino, 0, 300_000).unwrap(), [1; 300_000]);
        assert_eq!(volume.check(&mut |_, _| {}).unwrap().problem_count, before);
    }
}

#[test]
fn files_that_are_not_hafss_are_left_alone() {
    let prepared = Prepared::new(End::Crashed);
    let copy = prepared.copy();
    let strangers = ["notes.txt", "log/notes.txt", "segments/notes.txt"];
    for stranger in strangers {
        fs::write(copy.path().join(stranger), "mine").unwrap();
    }
    let report = copy.verdict().opened().report.unwrap();
    assert_eq!(report.problem_count, 1, "{report:?}");
    assert!(report.problems[0].to_string().contains("move it elsewhere"));
    for stranger in strangers {
        assert_eq!(
            fs::read(copy.path().join(stranger)).unwrap(),
            b"mine",
            "{stranger}"
        );
    }
}
