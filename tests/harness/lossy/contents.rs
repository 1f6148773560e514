//! One file of the lossy disk: its bytes as processes see them, and for each page that was not synced what the disk holds.
//!
//! The backing file has the live bytes. A page that changes is remembered as it was, so a sync forgets and a cut puts back.
//! No lock and no clock here: [`disk`](super::disk) calls, one at a time.
//!
//! Invariant: a sync covers what was written before it began, no more: a page that changes while it runs stays unsynced,
//! and counts as on the disk as it was at the beginning.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::Mode;
use crate::numbers::Numbers;

/// What a disk's cache keeps or loses as one.
pub(super) const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;
/// What a disk writes as one.
const SECTOR: usize = 512;
/// One change of an unsynced page in so many is remembered as something that the kernel may have written meanwhile.
const MIDDLE_ONCE_IN: u64 = 4;

/// A page's bytes; `None`: zeros.
type Image = Option<Box<[u8; PAGE_LEN]>>;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Contents {
    file: Arc<File>,
    len: u64,
    durable_len: u64,
    /// The shortest that the file was since it was last synced.
    cut_to: Option<u64>,
    dirty: BTreeMap<u64, Dirty>,
    sync: Option<SyncPoint>,
}

/// A page whose newest bytes are not on the disk.
#[derive(Debug)]
struct Dirty {
    /// What the disk holds.
    before: Image,
    /// Bytes that it had in between: the kernel writes pages back when it likes.
    middle: Option<Image>,
    at_sync: AtSync,
    /// A sync failed on it. The kernel takes such a page for clean: no later sync writes it, unless it changes again.
    given_up: bool,
}

/// What a sync that runs takes of a page.
#[derive(Debug)]
enum AtSync {
    /// Nothing: it changed only after the sync had begun.
    Nothing,
    /// The bytes as they are.
    Live,
    /// The bytes as they were when it began.
    Was(Image),
}

#[derive(Debug)]
struct SyncPoint {
    len: u64,
    cut_since: Option<u64>,
}

/// What a cut took of one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Pages that were not synced.
    pub(super) unsynced_pages: u64,
    /// Those that are not as they were last.
    pub(super) lost_pages: u64,
    /// Those that are partly so.
    pub(super) torn_pages: u64,
    /// Bytes that differ from what they were.
    pub(super) lost_bytes: u64,
}

impl Contents {
    /// A file that is on the disk as it is.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            len,
            durable_len: len,
            cut_to: None,
            dirty: BTreeMap::new(),
            sync: None,
        })
    }

    /// Where the live bytes are.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The same, for reading a range that the kernel does not have in its cache (any more): pages that it gave up come from
    /// the disk again, as they were before.
    pub(super) fn read(&mut self, offset: u64, len: u64) -> io::Result<&Arc<File>> {
        let end = (offset + len).min(self.len);
        let pages = offset / PAGE..end.div_ceil(PAGE).max(offset / PAGE);
        let given_up: Vec<u64> = self
            .dirty
            .range(pages)
            .filter(|(_, dirty)| dirty.given_up)
            .map(|(page, _)| *page)
            .collect();
        for page in given_up {
            let mut before = self.dirty.remove(&page).expect("just seen").before;
            clip(&mut before, page, self.len);
            let kept = usize::try_from((self.len - page * PAGE).min(PAGE)).expect("a page");
            self.file
                .write_all_at(&bytes(&before)[..kept], page * PAGE)?;
        }
        Ok(&self.file)
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of the pages that a cut may take.
    pub(super) fn unsynced_bytes(&self) -> u64 {
        self.dirty.len() as u64 * PAGE
    }

    pub(super) fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        numbers: &mut Numbers,
    ) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        for page in offset / PAGE..end.div_ceil(PAGE) {
            self.touch(page, numbers)?;
        }
        self.file.write_all_at(bytes, offset)?;
        self.len = self.len.max(end);
        Ok(())
    }

    pub(super) fn set_len(&mut self, len: u64, numbers: &mut Numbers) -> io::Result<()> {
        if len < self.len {
            self.touch_data(len, self.len, numbers)?;
            let shortest = |known: Option<u64>| Some(known.map_or(len, |known| known.min(len)));
            self.cut_to = shortest(self.cut_to);
            if let Some(sync) = &mut self.sync {
                sync.cut_since = shortest(sync.cut_since);
            }
        }
        self.file.set_len(len)?;
        self.len = len;
        Ok(())
    }

    /// `fallocate`: reserve, keep-size, punch hole, zero range.
    pub(super) fn allocate(
        &mut self,
        flags: FallocateFlags,
        offset: u64,
        len: u64,
        numbers: &mut Numbers,
    ) -> io::Result<()> {
        let zeroes = FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !(zeroes | FallocateFlags::KEEP_SIZE).contains(flags) {
            return Err(Errno::OPNOTSUPP.into());
        }
        if flags.intersects(zeroes) {
            self.touch_data(offset, offset + len, numbers)?;
        }
        fallocate(&*self.file, flags, offset, len)?;
        if !flags.contains(FallocateFlags::KEEP_SIZE) {
            self.len = self.len.max(offset + len);
        }
        Ok(())
    }

    /// From here on a sync runs: what is written now is what it will have covered.
    pub(super) fn begin_sync(&mut self) {
        self.sync = Some(SyncPoint {
            len: self.len,
            cut_since: None,
        });
        for dirty in self.dirty.values_mut().filter(|dirty| !dirty.given_up) {
            dirty.at_sync = AtSync::Live;
        }
    }

    /// The sync that runs has succeeded.
    pub(super) fn end_sync(&mut self) {
        let sync = self.sync.take().expect("a sync runs");
        self.durable_len = sync.len;
        self.cut_to = sync.cut_since;
        self.dirty.retain(|_, dirty| {
            match std::mem::replace(&mut dirty.at_sync, AtSync::Nothing) {
                AtSync::Nothing => true,
                AtSync::Live => false,
                AtSync::Was(image) => {
                    dirty.before = image;
                    dirty.middle = None;
                    true
                }
            }
        });
    }

    /// The sync that runs has failed: the kernel reports that once, and forgets that the pages are dirty.
    pub(super) fn fail_sync(&mut self) {
        self.sync = None;
        for dirty in self.dirty.values_mut() {
            let at_sync = std::mem::replace(&mut dirty.at_sync, AtSync::Nothing);
            dirty.given_up |= matches!(at_sync, AtSync::Live);
        }
    }

    /// Everything is on the disk, as after `umount`.
    pub(super) fn settle(&mut self) {
        self.dirty.clear();
        self.durable_len = self.len;
        self.cut_to = None;
        self.sync = None;
    }

    /// The power goes: the file becomes what the disk holds.
    pub(super) fn cut(&mut self, mode: Mode, numbers: &mut Numbers) -> io::Result<Taken> {
        let cut_to = self.cut_to.filter(|len| *len < self.durable_len);
        // A truncation happened with all that it removed, or not at all.
        let back = mode == Mode::Everything || (cut_to.is_some() && numbers.once_in(2));
        let len = if back {
            self.durable_len
        } else {
            let least = cut_to.unwrap_or(self.durable_len);
            self.some_len(least, numbers)
        };
        let mut taken = Taken::default();
        let mut pages = Vec::new();
        for (&page, dirty) in &self.dirty {
            let live = self.image(page)?;
            let (mut after, torn) = match cut_to {
                _ if back || dirty.given_up => (dirty.before.clone(), false),
                Some(cut_to) => {
                    let mut before = dirty.before.clone();
                    clip(&mut before, page, cut_to);
                    choose(mode, &[&before, &live], numbers)
                }
                None => choose(mode, &dirty.versions(&live), numbers),
            };
            clip(&mut after, page, len);
            let lost = differing(&live, &after);
            taken.unsynced_pages += 1;
            taken.lost_pages += u64::from(lost > 0);
            taken.torn_pages += u64::from(torn && lost > 0);
            taken.lost_bytes += lost;
            if lost > 0 {
                pages.push((page, after));
            }
        }
        self.file.set_len(self.len.max(len))?;
        for (page, image) in pages {
            self.file.write_all_at(bytes(&image), page * PAGE)?;
        }
        self.file.set_len(len)?;
        self.len = len;
        self.settle();
        Ok(taken)
    }

    /// A length that the disk may have: the one that is on it for sure, the newest, or the end of a page in between.
    fn some_len(&self, least: u64, numbers: &mut Numbers) -> u64 {
        assert!(least <= self.len, "no unsynced truncation");
        let pages = (self.len - least) / PAGE;
        let between = (least / PAGE + numbers.below(pages + 1)) * PAGE;
        numbers.one_of(&[least, self.len, between.clamp(least, self.len)])
    }

    /// Remembers a page before it changes.
    fn touch(&mut self, page: u64, numbers: &mut Numbers) -> io::Result<()> {
        let Some(dirty) = self.dirty.get(&page) else {
            let dirty = Dirty {
                before: self.image(page)?,
                middle: None,
                at_sync: AtSync::Nothing,
                given_up: false,
            };
            self.dirty.insert(page, dirty);
            return Ok(());
        };
        let in_sync = matches!(dirty.at_sync, AtSync::Live);
        let middle = numbers.once_in(MIDDLE_ONCE_IN);
        let image = if in_sync || middle {
            self.image(page)?
        } else {
            None
        };
        let dirty = self.dirty.get_mut(&page).expect("just seen");
        dirty.given_up = false;
        if middle {
            dirty.middle = Some(image.clone());
        }
        if in_sync {
            dirty.at_sync = AtSync::Was(image);
        }
        Ok(())
    }

    /// The same for all pages of a range that hold anything.
    fn touch_data(&mut self, from: u64, to: u64, numbers: &mut Numbers) -> io::Result<()> {
        let mut at = from;
        while at < to {
            let start = match seek(&*self.file, SeekFrom::Data(at)) {
                Ok(start) if start < to => start,
                Ok(_) | Err(Errno::NXIO) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let end = seek(&*self.file, SeekFrom::Hole(start))?.min(to);
            for page in start / PAGE..end.div_ceil(PAGE) {
                self.touch(page, numbers)?;
            }
            at = end.max(start + 1);
        }
        Ok(())
    }

    /// A page as it is now.
    fn image(&self, page: u64) -> io::Result<Image> {
        if page * PAGE >= self.len {
            return Ok(None);
        }
        let mut image = Box::new([0; PAGE_LEN]);
        let mut filled = 0;
        while filled < PAGE_LEN {
            match self
                .file
                .read_at(&mut image[filled..], page * PAGE + filled as u64)?
            {
                0 => break,
                len => filled += len,
            }
        }
        Ok(Some(image).filter(|image| **image != [0; PAGE_LEN]))
    }
}

impl Dirty {
    /// What the disk may hold of this page, the oldest first.
    fn versions<'a>(&'a self, live: &'a Image) -> Vec<&'a Image> {
        let mut versions = vec![&self.before];
        versions.extend(&self.middle);
        if let AtSync::Was(image) = &self.at_sync {
            versions.push(image);
        }
        versions.push(live);
        versions
    }
}

fn bytes(image: &Image) -> &[u8; PAGE_LEN] {
    image.as_deref().unwrap_or(&[0; PAGE_LEN])
}

/// Zeros what lies behind a file's end.
fn clip(image: &mut Image, page: u64, len: u64) {
    let kept = usize::try_from(len.saturating_sub(page * PAGE).min(PAGE)).expect("a page");
    if let Some(bytes) = image {
        bytes[kept..].fill(0);
    }
}

/// A legal outcome for a page, and whether it is a mix of two.
fn choose(mode: Mode, versions: &[&Image], numbers: &mut Numbers) -> (Image, bool) {
    let (first, second) = (numbers.one_of(versions), numbers.one_of(versions));
    let torn = match mode {
        Mode::Everything | Mode::Pages => false,
        Mode::Halves => numbers.once_in(2) && differing(first, second) > 0,
    };
    if !torn {
        return (first.clone(), false);
    }
    let mut image = Box::new(*bytes(first));
    if numbers.once_in(2) {
        image[PAGE_LEN / 2..].copy_from_slice(&bytes(second)[PAGE_LEN / 2..]);
    } else {
        for sector in (0..PAGE_LEN).step_by(SECTOR) {
            if numbers.once_in(2) {
                let range = sector..sector + SECTOR;
                image[range.clone()].copy_from_slice(&bytes(second)[range]);
            }
        }
    }
    (Some(image), true)
}

fn differing(a: &Image, b: &Image) -> u64 {
    bytes(a)
        .iter()
        .zip(bytes(b))
        .map(|(a, b)| u64::from(a != b))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        contents: Contents,
        numbers: Numbers,
    }

    impl Fixture {
        /// A file with these bytes on the disk.
        fn new(bytes: &[u8]) -> Self {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            Self {
                contents: Contents::new(file).unwrap(),
                numbers: Numbers::new(7),
            }
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) {
            self.contents
                .write(offset, bytes, &mut self.numbers)
                .unwrap();
        }

        fn set_len(&mut self, len: u64) {
            self.contents.set_len(len, &mut self.numbers).unwrap();
        }

        fn sync(&mut self) {
            self.contents.begin_sync();
            self.contents.end_sync();
        }

        fn cut(&mut self, mode: Mode) -> Taken {
            self.contents.cut(mode, &mut self.numbers).unwrap()
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; usize::try_from(self.contents.len()).unwrap()];
            self.contents.file().read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(
                self.contents.file().metadata().unwrap().len(),
                self.contents.len()
            );
            bytes
        }
    }

    #[test]
    fn what_was_not_synced_goes_and_what_was_stays() {
        let mut file = Fixture::new(&[1; 6000]);
        file.write(5000, &[2; 6000]);
        file.sync();
        file.write(100, &[3; 10]);
        file.write(10_000, &[3; 9000]);
        assert_eq!(file.contents.unsynced_bytes(), 4 * PAGE);
        let taken = file.cut(Mode::Everything);
        assert_eq!((taken.unsynced_pages, taken.lost_pages), (4, 4));
        assert_eq!(taken.lost_bytes, 10 + 9000);
        assert_eq!(file.bytes(), [vec![1; 5000], vec![2; 6000]].concat());
        assert_eq!(file.contents.unsynced_bytes(), 0);
    }

    #[test]
    fn what_is_written_while_a_sync_runs_is_not_covered() {
        let mut file = Fixture::new(&[0; 8192]);
        file.write(0, &[1; 8192]);
        file.contents.begin_sync();
        file.write(10, &[2; 10]);
        file.write(8192, &[2; 10]);
        file.contents.end_sync();
        file.cut(Mode::Everything);
        assert_eq!(file.bytes(), vec![1; 8192]);
    }

    #[test]
    fn a_cut_while_a_sync_runs_may_take_all() {
        let mut file = Fixture::new(&[0; 4096]);
        file.write(0, &[1; 4096]);
        file.contents.begin_sync();
        file.cut(Mode::Everything);
        assert_eq!(file.bytes(), vec![0; 4096]);
    }

    #[test]
    fn a_failed_sync_is_reported_once_and_its_pages_are_never_written() {
        let mut file = Fixture::new(&[0; 8192]);
        file.write(0, &[1; 8192]);
        file.contents.begin_sync();
        file.contents.fail_sync();
        file.write(4096, &[2; 1]);
        file.sync();
        file.cut(Mode::Pages);
        let second = [vec![2], vec![1; 4095]].concat();
        assert_eq!(file.bytes(), [vec![0; 4096], second].concat());
    }

    #[test]
    fn a_page_that_was_given_up_is_the_old_one_once_it_is_read_from_the_disk() {
        let mut file = Fixture::new(&[0; 8192]);
        file.write(0, &[1; 8000]);
        file.contents.begin_sync();
        file.contents.fail_sync();
        file.write(5000, &[2; 1]);
        file.contents.read(0, 8192).unwrap();
        let mut second = vec![1; 8000 - 4096];
        second.resize(4096, 0);
        second[5000 - 4096] = 2;
        assert_eq!(file.bytes(), [vec![0; 4096], second].concat());
        file.sync();
        assert_eq!(file.contents.unsynced_bytes(), 0);
    }

    #[test]
    fn an_unsynced_truncation_comes_back() {
        let mut file = Fixture::new(&[1; 10_000]);
        file.set_len(100);
        file.write(200, &[2; 10]);
        let live = file.bytes();
        assert_eq!(live.len(), 210);
        file.cut(Mode::Everything);
        assert_eq!(file.bytes(), vec![1; 10_000]);
        file.set_len(100);
        file.sync();
        file.cut(Mode::Everything);
        assert_eq!(file.bytes(), vec![1; 100]);
    }

    #[test]
    fn a_truncation_happens_whole_or_not() {
        let (mut before, mut after) = (0, 0);
        for seed in 0..200 {
            let mut file = Fixture::new(&[1; 20_000]);
            file.numbers = Numbers::new(seed);
            file.set_len(5000);
            file.set_len(12_000);
            file.cut(Mode::Pages);
            let bytes = file.bytes();
            if bytes.len() == 20_000 {
                assert_eq!(bytes, vec![1; 20_000]);
                before += 1;
            } else {
                assert!((5000..=12_000).contains(&bytes.len()));
                assert!(bytes[..5000].iter().all(|byte| *byte == 1));
                assert!(bytes[5000..].iter().all(|byte| *byte == 0));
                after += 1;
            }
        }
        assert!(before > 50 && after > 50, "{before} {after}");
    }

    #[test]
    fn each_page_is_kept_or_lost_by_itself() {
        let mut all = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let mut file = Fixture::new(&[0; 3 * 4096]);
            file.numbers = Numbers::new(seed);
            file.write(0, &[1; 3 * 4096]);
            let taken = file.cut(Mode::Pages);
            let bytes = file.bytes();
            assert!(bytes.chunks(4096).all(|page| page == [page[0]; 4096]));
            let kept: Vec<u8> = bytes.chunks(4096).map(|page| page[0]).collect();
            let lost = kept.iter().filter(|byte| **byte == 0).count() as u64;
            assert_eq!((taken.lost_pages, taken.lost_bytes), (lost, lost * 4096));
            all.insert(kept);
        }
        assert_eq!(all.len(), 8, "every subset comes up");
    }

    #[test]
    fn a_page_written_twice_may_be_caught_in_between() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut file = Fixture::new(&[0; 4096]);
            file.numbers = Numbers::new(seed);
            file.write(0, &[1; 4096]);
            file.write(0, &[2; 4096]);
            file.cut(Mode::Pages);
            seen.insert(file.bytes()[0]);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn torn_pages_have_whole_sectors() {
        let mut torn = 0;
        for seed in 0..100 {
            let mut file = Fixture::new(&[1; 4096]);
            file.numbers = Numbers::new(seed);
            file.write(0, &[2; 4096]);
            torn += file.cut(Mode::Halves).torn_pages;
            let bytes = file.bytes();
            for sector in bytes.chunks(SECTOR) {
                assert!(sector == [1; SECTOR] || sector == [2; SECTOR]);
            }
        }
        assert!((10..90).contains(&torn), "{torn}");
    }

    #[test]
    fn preallocated_and_punched_ranges() {
        let mut file = Fixture::new(&[1; 8192]);
        let numbers = &mut Numbers::new(3);
        let contents = &mut file.contents;
        contents
            .allocate(FallocateFlags::empty(), 0, 1 << 20, numbers)
            .unwrap();
        contents
            .allocate(FallocateFlags::KEEP_SIZE, 0, 2 << 20, numbers)
            .unwrap();
        assert_eq!((contents.len(), contents.unsynced_bytes()), (1 << 20, 0));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        contents.allocate(punch, 4096, 1 << 20, numbers).unwrap();
        assert_eq!(contents.unsynced_bytes(), PAGE);
        let refused = contents
            .allocate(FallocateFlags::COLLAPSE_RANGE, 0, 4096, numbers)
            .unwrap_err();
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::OPNOTSUPP));
        assert_eq!(file.bytes()[4096..8192], [0; 4096]);
        file.cut(Mode::Everything);
        assert_eq!(file.bytes(), vec![1; 8192]);
    }
}
