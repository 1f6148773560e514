//! The part of a check that reads the files of the state, RocksDB's, as another start would.
//!
//! Rows come from RocksDB's caches where they can, so a block that went bad on the disk may have been passed over so far; and
//! there are blocks that no row of today is in.

use super::{Findings, Problem, ProblemKind, ROWS_A_STEP, next, with_causes};
use crate::error::FsError;
use crate::store::Store;
use crate::store::state::tables;

/// RocksDB goes on writing its books while they are read. What is damaged is so each time.
const OPEN_TRIES: u32 = 3;

pub(super) fn check_files(store: &Store, findings: &mut Findings<'_>) -> Result<(), FsError> {
    let mut opened = store.state_files();
    for _ in 1..OPEN_TRIES {
        if opened.is_err() {
            opened = store.state_files();
        }
    }
    let files = match opened {
        Ok(files) => files,
        Err(error) => {
            findings.state_file(format!("they do not open again: {}", with_causes(&error)));
            return Ok(());
        }
    };
    let mut failed = 0;
    for table in tables() {
        let mut read = 0;
        for row in files.rows(table) {
            if let Err(error) = row {
                failed += 1;
                findings.state_file(format!("table `{table}`: {}", with_causes(&error)));
                break; // nothing comes behind it
            }
            read += 1;
            if read % ROWS_A_STEP == 0 {
                findings.step()?;
            }
        }
    }
    // RocksDB says nothing of a filter that it cannot read: it only looks into more blocks then.
    let unsaid = files.bad_blocks();
    if failed == 0 && unsaid > 0 {
        findings.state_file(format!("{unsaid} blocks do not match their checksums"));
    }
    Ok(())
}

impl Findings<'_> {
    fn state_file(&mut self, what: String) {
        self.problem(Problem {
            next: next::STATE,
            ..Problem::of_books(ProblemKind::StateFile, format!("the state's files: {what}"))
        });
    }
}
