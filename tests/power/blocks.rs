//! Two of the writers: `O_DIRECT` writes over a few files, block by block. What write(2) returned for, hafsd has answered.
//!
//! Each block says which operation wrote it, so each found block narrows down how many operations the state can hold.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use hafs_tests::numbers::Numbers;

use crate::history::{Clock, Held, History, Lost};
use crate::writer::{Aligned, BLOCK, End, Pace, Stopped, Writer, blocks, numbers_of, sync};

/// How such a writer goes about it.
#[derive(Debug, Clone, Copy)]
struct Manner {
    name: &'static str,
    files: u64,
    /// Blocks of a file.
    blocks: u64,
    /// How many an operation writes, at a multiple of so many.
    lens: &'static [u64],
    /// It fsyncs once in so many steps.
    sync_once_in: u64,
}

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct Blocks {
    manner: Manner,
    numbers: Numbers,
    open: BTreeMap<u64, File>,
    /// Which operation each block of each file was written by, when the power last came back.
    base: Vec<Vec<u64>>,
    ops: Vec<Op>,
    history: History,
    next: u64,
    found: Vec<Vec<u64>>,
    held: Held,
}

#[derive(Debug, Clone, Copy)]
struct Op {
    number: u64,
    file: u64,
    from: u64,
    len: u64,
}

impl Op {
    fn touches(&self, file: usize, at: usize) -> bool {
        self.file == file as u64 && (self.from..self.from + self.len).contains(&(at as u64))
    }
}

impl Blocks {
    /// Pieces of one file, of up to 256 KiB.
    pub(crate) fn pieces(seed: u64) -> Self {
        Self::new(
            seed,
            Manner {
                name: "pieces",
                files: 1,
                blocks: 1024,
                lens: &[1, 1, 1, 2, 4, 16, 64],
                sync_once_in: 16,
            },
        )
    }

    /// Blocks of 1 MiB of three files: segments fill, die and are collected.
    pub(crate) fn bulk(seed: u64) -> Self {
        Self::new(
            seed,
            Manner {
                name: "bulk",
                files: 3,
                blocks: 2048,
                lens: &[256],
                sync_once_in: 10,
            },
        )
    }

    fn new(seed: u64, manner: Manner) -> Self {
        let files = usize::try_from(manner.files).expect("few");
        Self {
            manner,
            numbers: Numbers::new(seed),
            open: BTreeMap::new(),
            base: vec![Vec::new(); files],
            ops: Vec::new(),
            history: History::default(),
            next: 1,
            found: Vec::new(),
            held: Held { least: 0, most: 0 },
        }
    }

    fn file(&mut self, dir: &Path, number: u64) -> Result<&File, Stopped> {
        let file = match self.open.remove(&number) {
            Some(file) => file,
            None => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(libc::O_DIRECT)
                .open(dir.join(format!("file-{number}")))
                .map_err(Stopped::from("open with O_DIRECT"))?,
        };
        Ok(self.open.entry(number).or_insert(file))
    }

    /// How many operations the state can hold for this block to be as it is.
    fn narrow(&mut self, file: usize, at: usize, is: u64) -> Result<(), Lost> {
        let base = self.base[file].get(at).copied().unwrap_or(0);
        let touching = self.ops.iter().enumerate();
        let mut touching = touching
            .filter(|(_, op)| op.touches(file, at))
            .map(|(count, op)| (count + 1, op.number));
        // The writes of this block, and from which count of operations on each is what it holds.
        let mut from = 0;
        let mut holds = base;
        let most = loop {
            let next = touching.next();
            if holds == is {
                break next.map_or(self.ops.len(), |(count, _)| count - 1);
            }
            let Some((count, number)) = next else {
                return Err(format!(
                    "block {at} of file {file} is from operation {is}, which was not there to stay"
                ));
            };
            (from, holds) = (count, number);
        };
        let held = Held {
            least: self.held.least.max(from),
            most: self.held.most.min(most),
        };
        if held.least > held.most {
            return Err(format!(
                "no prefix: block {at} of file {file} is from operation {is}: so {from} to {most} operations happened, \
                 other blocks say {} to {}",
                self.held.least, self.held.most
            ));
        }
        self.held = held;
        Ok(())
    }
}

impl Writer for Blocks {
    fn name(&self) -> &'static str {
        self.manner.name
    }

    fn step(&mut self, dir: &Path, clock: &Clock, pace: Pace) -> Result<(), Stopped> {
        let number = self.next;
        let len = self.numbers.one_of(self.manner.lens);
        let op = Op {
            number,
            file: self.numbers.below(self.manner.files),
            from: self.numbers.below(self.manner.blocks / len) * len,
            len,
        };
        let syncs = pace.once_in(self.manner.sync_once_in);
        let syncs = self.numbers.once_in(syncs);
        let content = Aligned::new(&blocks(number, op.from, op.len));
        self.file(dir, op.file)?;
        self.next += 1;
        self.ops.push(op);
        self.history.begin(clock);
        self.open[&op.file]
            .write_all_at(content.bytes(), op.from * BLOCK as u64)
            .map_err(Stopped::from("write with O_DIRECT"))?;
        self.history.end(clock);
        if syncs {
            sync(&self.open[&op.file], &mut self.history, clock)?;
        }
        Ok(())
    }

    fn release(&mut self) {
        self.open.clear();
    }

    fn examine(&mut self, dir: &Path) -> Result<Held, Lost> {
        self.found = Vec::new();
        self.held = Held {
            least: 0,
            most: self.ops.len(),
        };
        for file in 0..self.base.len() {
            let bytes = match fs::read(dir.join(format!("file-{file}"))) {
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                read => read.map_err(|error| format!("file {file}: {error}"))?,
            };
            let found = numbers_of(&bytes).map_err(|lost| format!("file {file}: {lost}"))?;
            if found.last() == Some(&0) {
                return Err(format!("file {file} ends with a block nobody wrote"));
            }
            let blocks = usize::try_from(self.manner.blocks).expect("few");
            for place in 0..blocks {
                self.narrow(file, place, found.get(place).copied().unwrap_or(0))?;
            }
            self.found.push(found);
        }
        Ok(self.held)
    }

    fn go_on(&mut self, end: End, clock: &Clock) {
        match end {
            End::Process => {
                self.ops.truncate(self.held.most);
                self.history.truncate(self.held.most, clock);
            }
            End::Power => {
                self.base = std::mem::take(&mut self.found);
                self.ops.clear();
                self.history.clear();
            }
        }
    }

    fn history(&self) -> &History {
        &self.history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path) -> Blocks {
        let mut writer = Blocks::pieces(1);
        let clock = Clock::default();
        for _ in 0..60 {
            writer.step(dir, &clock, Pace::Often).unwrap();
        }
        writer
    }

    #[test]
    fn it_sees_how_far_a_state_goes_and_that_a_mix_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = written(dir.path());
        let all = writer.examine(dir.path()).unwrap();
        assert_eq!(all.most, 60);
        assert!(all.least > 50);
        let path = dir.path().join("file-0");
        let bytes = fs::read(&path).unwrap();
        // Undo the last operation alone, then an early one that nothing overwrote.
        let undo = |bytes: &mut Vec<u8>, op: &Op| {
            let from = usize::try_from(op.from).unwrap() * BLOCK;
            bytes[from..from + usize::try_from(op.len).unwrap() * BLOCK].fill(0);
        };
        let overwritten = |number: usize| {
            let op = writer.ops[number];
            let mut others = writer.ops.iter();
            others.any(|other| {
                other.number != op.number
                    && op.from < other.from + other.len
                    && other.from < op.from + op.len
            })
        };
        let alone = (0..30).find(|number| !overwritten(*number)).unwrap();
        let mut mix = bytes.clone();
        undo(&mut mix, &writer.ops[alone]);
        fs::write(&path, mix).unwrap();
        let lost = writer.examine(dir.path()).unwrap_err();
        assert!(lost.contains("no prefix"), "{lost}");
        let mut flipped = bytes;
        flipped[1 << 20 | 77] ^= 4;
        fs::write(&path, flipped).unwrap();
        assert!(writer.examine(dir.path()).is_err());
    }
}
