//! An fsync that must make two files durable: a log with 4 KiB and a segment with 128 KiB of new data.
//!
//! Decides whether the two are synced by two threads, whether segments are recycled like log files, and what is saved
//! by putting the data into the log instead.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::{Measured, Run, files};
use crate::sample::{Series, slice};

const LOG_BYTES: usize = 4 << 10;
const SEGMENT_BYTES: usize = 128 << 10;

const WAYS: [Way; 7] = [
    Way::LogAlone,
    Way::SegmentAlone,
    Way::InTurn(Segment::Unwritten),
    Way::SideBySide(Segment::Unwritten),
    Way::InTurn(Segment::Written),
    Way::SideBySide(Segment::Written),
    Way::AllInLog,
];

#[derive(Clone, Copy, Debug)]
enum Way {
    LogAlone,
    SegmentAlone,
    InTurn(Segment),
    SideBySide(Segment),
    AllInLog,
}

/// What a segment's blocks were before.
#[derive(Clone, Copy, Debug)]
enum Segment {
    Unwritten,
    Written,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::LogAlone => "log alone, 4 KiB",
            Self::SegmentAlone => "fallocated segment alone, 128 KiB",
            Self::InTurn(Segment::Unwritten) => "fallocated segment, then log",
            Self::SideBySide(Segment::Unwritten) => "fallocated segment and log side by side",
            Self::InTurn(Segment::Written) => "recycled segment, then log",
            Self::SideBySide(Segment::Written) => "recycled segment and log side by side",
            Self::AllInLog => "all 132 KiB in the log",
        }
    }

    fn segment(self) -> Segment {
        match self {
            Self::InTurn(segment) | Self::SideBySide(segment) => segment,
            Self::LogAlone | Self::SegmentAlone | Self::AllInLog => Segment::Unwritten,
        }
    }
}

/// A thread that syncs what it is sent; one request under way at a time.
#[derive(Debug)]
struct SecondSyncer {
    requests: SyncSender<Arc<File>>,
    done: Receiver<std::io::Result<()>>,
}

/// A log that is written over from end to end, again and again.
#[derive(Debug)]
struct Ring {
    file: File,
    offset: u64,
}

/// Times each way. `budget` is for all of them together, their writes included.
pub(super) fn measure(run: &Run<'_>, budget: Duration) -> anyhow::Result<Vec<Measured>> {
    let budget = budget / u32::try_from(WAYS.len() * run.rounds)?;
    let mut measured = WAYS.map(|way| Measured {
        how: way.name(),
        size_bytes: match way {
            Way::LogAlone => LOG_BYTES,
            Way::SegmentAlone => SEGMENT_BYTES,
            Way::InTurn(_) | Way::SideBySide(_) | Way::AllInLog => LOG_BYTES + SEGMENT_BYTES,
        },
        series: Series::default(),
    });
    let mut log = Ring {
        file: files::zeroed(run.scratch, "pair.log")?,
        offset: 0,
    };
    let written = Arc::new(files::old(run.scratch, "pair.written")?);
    thread::scope(|scope| {
        let (requests, jobs) = sync_channel::<Arc<File>>(1);
        let (answers, done) = sync_channel(1);
        // Ends when `requests` is dropped, at the end of this closure.
        scope.spawn(move || {
            jobs.iter()
                .try_for_each(|file| answers.send(file.sync_data()))
        });
        let second = SecondSyncer { requests, done };
        run.alternate(WAYS.len(), |_, way| {
            let round = one_way(run, WAYS[way], &mut log, &written, &second, budget)?;
            measured[way].series.push(round);
            Ok(())
        })
    })?;
    Ok(measured.into())
}

/// What a reader must know beside the table.
pub(super) fn notes() -> Vec<String> {
    vec![
        "Two files: the log is written over (64 MiB, cached), the segment takes 128 KiB at its end; a recycled segment \
         was written before. Writes are outside the clock. Side by side: a second thread, woken for it, syncs the \
         segment while the first syncs the log."
            .to_owned(),
    ]
}

fn one_way(
    run: &Run<'_>,
    way: Way,
    log: &mut Ring,
    written: &Arc<File>,
    second: &SecondSyncer,
    budget: Duration,
) -> anyhow::Result<Vec<u64>> {
    let small = files::noise(LOG_BYTES, 4);
    let large = files::noise(SEGMENT_BYTES, 5);
    let fresh = |name: &str| files::unwritten(run.scratch, name).map(Arc::new);
    let mut segment = match way.segment() {
        Segment::Unwritten => fresh("pair.segment")?,
        Segment::Written => Arc::clone(written),
    };
    run.scratch.settle()?;
    let places = u64::try_from(files::pieces(SEGMENT_BYTES))?;
    slice(run.interrupt, budget, usize::MAX, |index| {
        let place = index % places;
        if place == 0 && index > 0 && matches!(way.segment(), Segment::Unwritten) {
            segment = fresh("pair.segment")?;
        }
        let append =
            || segment.write_all_at(&large, place * u64::try_from(large.len()).unwrap_or(0));
        match way {
            Way::LogAlone => log.append(&[&small])?,
            Way::SegmentAlone => append()?,
            Way::InTurn(_) | Way::SideBySide(_) => {
                append()?;
                log.append(&[&small])?;
            }
            Way::AllInLog => log.append(&[&small, &large])?,
        }
        let begin = Instant::now();
        match way {
            Way::LogAlone | Way::AllInLog => log.file.sync_data()?,
            Way::SegmentAlone => segment.sync_data()?,
            Way::InTurn(_) => {
                segment.sync_data()?;
                log.file.sync_data()?;
            }
            Way::SideBySide(_) => {
                second.begin(&segment)?;
                let synced = log.file.sync_data();
                second.finish()?;
                synced?;
            }
        }
        Ok(begin.elapsed())
    })
}

impl SecondSyncer {
    fn begin(&self, file: &Arc<File>) -> anyhow::Result<()> {
        self.requests
            .send(Arc::clone(file))
            .map_err(|_| anyhow!("the second thread is gone"))
    }

    fn finish(&self) -> anyhow::Result<()> {
        Ok(self.done.recv()??)
    }
}

impl Ring {
    /// Writes the parts one after the other, from the start again where they would not fit.
    fn append(&mut self, parts: &[&[u8]]) -> anyhow::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if self.offset + u64::try_from(total)? > super::FILE_BYTES {
            self.offset = 0;
        }
        for part in parts {
            self.file.write_all_at(part, self.offset)?;
            self.offset += u64::try_from(part.len())?;
        }
        Ok(())
    }
}
