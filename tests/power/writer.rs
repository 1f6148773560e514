//! Writers that remember what they did and when, and tell how much of it is left.
//!
//! Each has a directory of its own on the mount and a thread of its own in a round. A round ends with the power: what was
//! not fsynced may be gone, from some moment on. [`Writer::examine`] says how many operations the state holds, and fails if it
//! is no state that the writer ever saw; [`history`](crate::history) puts the writers together.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::history::{Clock, Held, History, Lost};

/// Bytes of a block: what the writers with `O_DIRECT` number.
pub(crate) const BLOCK: usize = 4096;

/// Why a step did not happen.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The daemon is gone, or the disk under it.
    Gone,
    /// Something else: a failure of the test.
    Wrong(String),
}

impl Stopped {
    /// Sorts the error of a system call. A dead FUSE mount answers ENOTCONN, a request that was under way ECONNABORTED; a
    /// hafsd whose disk is gone, and fsync for pages that could not be written, EIO.
    pub(crate) fn from(what: &str) -> impl Fn(io::Error) -> Self + '_ {
        move |error| match Errno::from_io_error(&error) {
            Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::IO) => Self::Gone,
            _ => Self::Wrong(format!("{what}: {error}")),
        }
    }
}

/// What the end of a round took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// hafsd alone: the page cache is still there, so what is found now may be gone after a cut.
    Process,
    /// The power: what is found is on the disk.
    Power,
}

/// How often a writer fsyncs in this round. Any fsync makes everything durable, so where all do it often, a cut finds little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As a database would.
    Often,
    /// Now and then.
    Seldom,
}

impl Pace {
    /// One of so many in place of one of `often`.
    pub(crate) fn once_in(self, often: u64) -> u64 {
        match self {
            Self::Often => often,
            Self::Seldom => often * 20,
        }
    }
}

/// One of the four.
pub(crate) trait Writer: Send + Debug {
    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// Does one thing and remembers when.
    fn step(&mut self, dir: &Path, clock: &Clock, pace: Pace) -> Result<(), Stopped>;

    /// Closes what it holds open.
    fn release(&mut self);

    /// Compares what is there with what was done.
    fn examine(&mut self, dir: &Path) -> Result<Held, Lost>;

    /// Takes what [`Self::examine`] found for the truth and goes on from there.
    fn go_on(&mut self, end: End, clock: &Clock);

    /// What it did since the power last came back.
    fn history(&self) -> &History;
}

/// fsync, and what it promises.
pub(crate) fn sync(file: &File, history: &mut History, clock: &Clock) -> Result<(), Stopped> {
    let begin = clock.now();
    file.sync_all().map_err(Stopped::from("fsync"))?;
    history.synced(begin);
    Ok(())
}

/// The bytes of block `place` as written by operation `number`; zeros for none.
fn block(number: u64, place: u64) -> Vec<u8> {
    if number == 0 {
        return vec![0; BLOCK];
    }
    let mut bytes = hafs_tests::numbers::pattern(number ^ (place << 40), BLOCK);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The bytes of `count` blocks from `from` on.
pub(crate) fn blocks(number: u64, from: u64, count: u64) -> Vec<u8> {
    (from..from + count)
        .flat_map(|place| block(number, place))
        .collect()
}

/// Which operations wrote the blocks of a file.
pub(crate) fn numbers_of(bytes: &[u8]) -> Result<Vec<u64>, Lost> {
    if !bytes.len().is_multiple_of(BLOCK) {
        return Err(format!("has {} bytes", bytes.len()));
    }
    let blocks = bytes.chunks(BLOCK).enumerate();
    blocks
        .map(|(place, bytes)| number_of(bytes, place as u64))
        .collect()
}

/// Which operation wrote these bytes of block `place`, whole.
fn number_of(bytes: &[u8], place: u64) -> Result<u64, Lost> {
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    let whole = block(number, place);
    if let Some(at) = bytes.iter().zip(&whole).position(|(is, was)| is != was) {
        return Err(format!(
            "block {place} says operation {number}, and byte {at} of it is {:#04x} instead of {:#04x}",
            bytes[at], whole[at]
        ));
    }
    Ok(number)
}

/// Bytes at an address that `O_DIRECT` takes as they are: as one request, if they fit one.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    pub(crate) fn new(content: &[u8]) -> Self {
        let mut bytes = vec![0; content.len() + BLOCK];
        let from = bytes.as_ptr().align_offset(BLOCK);
        bytes[from..from + content.len()].copy_from_slice(content);
        Self {
            bytes,
            from,
            len: content.len(),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.len]
    }
}
