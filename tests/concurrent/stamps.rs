//! Threads that overwrite and read the same file. It is cut into units; each write fills whole units with its own stamp, so a
//! unit that holds two stamps was torn, and a stamp that is older than its writer's last on that unit came back from the dead.

use std::fmt::Write as _;

use hafs_fs::{Caller, Ino, Volume};
use hafs_tests::Numbers;

use crate::Worker;

/// How a file is cut and written.
#[derive(Debug)]
pub(crate) struct Layout {
    name: &'static str,
    unit_bytes: usize,
    units: usize,
    /// Units of one write, as likely as each is listed.
    writes: &'static [usize],
    /// Writes of one unit that a step makes one after the other, each apart from the next: extents.
    burst: usize,
}

/// What a page cache writes: pages, some together.
pub(crate) const PAGES: Layout = Layout {
    name: "pages",
    unit_bytes: 4096,
    units: 64,
    writes: &[1, 1, 1, 2, 16, 40],
    burst: 1,
};

/// Thousands of small extents, and writes of a megabyte over them, which need several records each.
pub(crate) const FRAGMENTS: Layout = Layout {
    name: "fragments",
    unit_bytes: 256,
    units: 6000,
    writes: &[1, 1, 1, 1, 1, 1, 100, 4096],
    burst: 100,
};

#[derive(Debug)]
struct Stamper {
    numbers: Numbers,
    number: u64,
    layout: &'static Layout,
    ino: Ino,
    next: u64,
    /// Its last stamp on each unit, or 0.
    last: Vec<u64>,
}

/// Threads over one file of their own.
pub(crate) fn writers(
    volume: &Volume,
    seed: u64,
    layout: &'static Layout,
    count: u64,
) -> Vec<Box<dyn Worker>> {
    let mode = libc::S_IFREG | 0o644;
    let made = volume.mknod(Caller::ROOT, Ino::ROOT, layout.name.as_bytes(), mode, 0);
    let ino = made.expect("mknod").ino;
    let stamper = |number| Stamper {
        numbers: Numbers::of(seed, &[3, layout.units as u64, number]),
        number,
        layout,
        ino,
        next: 1,
        last: vec![0; layout.units],
    };
    let mut stampers: Vec<Stamper> = (1..=count).map(stamper).collect();
    if layout.burst > 1 {
        stampers[0].prove_that_records_are_several(volume);
    }
    stampers
        .into_iter()
        .map(|stamper| -> Box<dyn Worker> { Box::new(stamper) })
        .collect()
}

impl Stamper {
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.numbers.below(end as u64)).expect("below a usize")
    }

    /// Fills units with a new stamp, in one call.
    fn write(&mut self, volume: &Volume, first: usize, units: usize) {
        let stamp = (self.number << 48) | self.next;
        self.next += 1;
        let bytes = stamp
            .to_le_bytes()
            .repeat(units * self.layout.unit_bytes / 8);
        let offset = (first * self.layout.unit_bytes) as u64;
        let written = volume.write(self.ino, offset, &bytes, false, false);
        assert_eq!(written.expect("write") as usize, bytes.len());
        self.last[first..first + units].fill(stamp);
    }

    /// Reads units and judges each. Threads before the first stamp, and holes, read as zeros.
    fn read(&mut self, volume: &Volume, first: usize, units: usize) {
        let unit_bytes = self.layout.unit_bytes;
        let (offset, len) = ((first * unit_bytes) as u64, units * unit_bytes);
        let read = volume.read(self.ino, offset, u32::try_from(len).expect("small"));
        let mut read = read.expect("read");
        assert_eq!(read.len() % unit_bytes, 0, "a file ends with a unit");
        read.resize(len, 0);
        for (unit, bytes) in (first..).zip(read.chunks(unit_bytes)) {
            let stamp = u64::from_le_bytes(*bytes.first_chunk().expect("8 bytes"));
            let whole = bytes.chunks(8).all(|word| word == stamp.to_le_bytes());
            assert!(whole, "unit {unit} is torn: {}", stamps(bytes));
            // Nobody has written since, or somebody else has.
            let mine = stamp >> 48 == self.number || stamp == 0;
            assert!(
                !mine || stamp == self.last[unit],
                "unit {unit} holds {stamp:x}, the last was {:x}",
                self.last[unit]
            );
        }
    }

    /// A megabyte over more extents than a record changes is several records: else this tests nothing of them.
    fn prove_that_records_are_several(&mut self, volume: &Volume) {
        for unit in (0..self.layout.units).step_by(2) {
            self.write(volume, unit, 1);
        }
        let before = volume.status().head;
        self.write(volume, 0, 4096);
        let records = volume.status().head.0 - before.0;
        assert!(records > 1, "{records} record");
        for unit in (0..self.layout.units).step_by(2) {
            self.write(volume, unit, 1);
        }
    }
}

/// The stamps of a torn unit.
fn stamps(bytes: &[u8]) -> String {
    let mut text = String::new();
    for word in bytes.chunks(8) {
        let stamp = word
            .iter()
            .rev()
            .fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        let _ = write!(text, "{stamp:x} ");
    }
    text
}

impl Worker for Stamper {
    fn step(&mut self, volume: &Volume) {
        let layout = self.layout;
        let units = layout.writes[self.below(layout.writes.len())];
        let first = self.below(layout.units - units + 1);
        match self.below(3) {
            0 => {
                let first = self.below(layout.units);
                let units = (1 + self.below(300)).min(layout.units - first);
                self.read(volume, first, units);
            }
            _ if units == 1 => {
                for unit in (first..layout.units).step_by(2).take(layout.burst) {
                    self.write(volume, unit, 1);
                }
            }
            _ => self.write(volume, first, units),
        }
    }

    fn verify(&mut self, volume: &Volume) {
        let step = (1 << 20) / self.layout.unit_bytes;
        for first in (0..self.layout.units).step_by(step) {
            self.read(volume, first, step.min(self.layout.units - first));
        }
    }
}
