//! Files in the states that matter to a sync: growing, preallocated, written before, recycled.
//!
//! Used by the other parts. Every function leaves the file durable and the filesystem quiet, so that what is timed next
//! pays for itself alone.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use super::FILE_BYTES;
use crate::scratch::Scratch;

/// How much is written at once when a file is filled.
const FILL_BYTES: usize = 1 << 20;

/// A new, empty file.
pub(super) fn empty(scratch: &Scratch, name: &str) -> anyhow::Result<File> {
    let file = open(&scratch.path(name))?;
    quiet(scratch, file)
}

/// A new file of [`FILE_BYTES`] whose blocks are reserved but never written: a write must turn them into written ones.
pub(super) fn unwritten(scratch: &Scratch, name: &str) -> anyhow::Result<File> {
    let file = open(&scratch.path(name))?;
    fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES).context("fallocate")?;
    quiet(scratch, file)
}

/// A new file of [`FILE_BYTES`], written over with zeros; its pages are still cached.
pub(super) fn zeroed(scratch: &Scratch, name: &str) -> anyhow::Result<File> {
    let file = open(&scratch.path(name))?;
    fill(&file, &[0; FILL_BYTES])?;
    quiet(scratch, file)
}

/// A new file of [`FILE_BYTES`] of noise, for [`recycle`] to start from.
pub(super) fn old(scratch: &Scratch, name: &str) -> anyhow::Result<File> {
    let file = open(&scratch.path(name))?;
    fill(&file, &noise(FILL_BYTES, 7))?;
    quiet(scratch, file)
}

/// Renames an old file to its new use and forgets its cached pages, as for a log that was written hours ago.
pub(super) fn recycle(scratch: &Scratch, from: &str, to: &str) -> anyhow::Result<File> {
    std::fs::rename(scratch.path(from), scratch.path(to))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(scratch.path(to))?;
    let file = quiet(scratch, file)?;
    fadvise(&file, 0, None, Advice::DontNeed).context("fadvise")?;
    Ok(file)
}

/// How many pieces of this size fit a file of [`FILE_BYTES`].
pub(super) fn pieces(piece_bytes: usize) -> usize {
    usize::try_from(FILE_BYTES).expect("64 MiB fit an address space") / piece_bytes
}

/// Bytes that do not compress, different for each seed.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; len];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))
}

fn fill(file: &File, piece: &[u8]) -> anyhow::Result<()> {
    for offset in (0..FILE_BYTES).step_by(piece.len()) {
        file.write_all_at(piece, offset)?;
    }
    Ok(())
}

fn quiet(scratch: &Scratch, file: File) -> anyhow::Result<File> {
    file.sync_all()?;
    scratch.sync_names()?;
    scratch.settle()?;
    Ok(file)
}
