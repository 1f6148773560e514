//! The big volume, without FUSE: made by hafsd, then used by this process through [`Volume`] as hafsd would.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use hafs_fs::{Caller, Ino, Profile, SeekTo, Volume, VolumeIdentity, VolumeSettings};
use hafs_meta::{Catalog, LocalStore};
use hafs_protocol::{Epoch, Member};
use uuid::Uuid;

use super::{Run, scattered};
use crate::machine::drop_caches;
use crate::usage::Resident;

pub(super) const NAME: &str = "big";
/// Its size, and that of the sparse file.
const SPARSE_BYTES: u64 = 1 << 40;
const SPARSE_WRITES: u64 = 20_000;
const FILES_A_DIRECTORY: u64 = 1000;
/// Content of each file: small ones are where filesystems choke.
pub(super) const FILE_BYTES: usize = 100;
const LOOKUPS: u64 = 1_000_000;
/// Files made before each kill. State is flushed after 16,384 records, two or three a file: so each kill finds another
/// length of log to be replayed, up to the longest.
const FILES_A_KILL: u64 = 7_001;
const KILLS: u64 = 5;

/// Where the file of that number is, below the root.
pub(super) fn path_of(number: u64) -> PathBuf {
    Path::new(&format!("dir-{}", number / FILES_A_DIRECTORY)).join(format!("file-{number}"))
}

/// A volume of a hafsd that does not run.
struct Store {
    meta: PathBuf,
    dir: PathBuf,
    identity: VolumeIdentity,
    settings: VolumeSettings,
}

impl Store {
    /// The only volume in a data directory.
    fn only_one_in(data: &Path) -> anyhow::Result<Self> {
        let mut volumes = fs::read_dir(data.join("volumes"))?;
        let dir = volumes.next().context("hafsd made no volume")??.path();
        Ok(Self {
            meta: data.join("meta"),
            identity: VolumeIdentity::read(&dir)?,
            settings: VolumeSettings::new(SPARSE_BYTES, Profile::Auto),
            dir,
        })
    }

    /// As hafsd does it: in an epoch that the control store knows of, so that hafsd's next one is higher.
    fn open(&self) -> anyhow::Result<Volume> {
        let epoch = self.begin_epoch().context("cannot begin an epoch")?;
        Volume::open(&self.dir, &self.identity, &self.settings, epoch)
            .context("cannot open the volume")
    }

    fn begin_epoch(&self) -> anyhow::Result<Epoch> {
        let catalog = Catalog::new(LocalStore::open(&self.meta)?);
        let member = Member {
            node: self.identity.node,
            store: self.identity.store,
        };
        let begun = catalog.begin_epoch(self.identity.volume, member, Uuid::new_v4());
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        Ok(runtime.block_on(begun)?.config.epoch)
    }
}

/// Makes files one after the other.
struct Maker<'a> {
    run: &'a Run<'a>,
    volume: &'a Volume,
    next: u64,
    parent: Ino,
}

impl<'a> Maker<'a> {
    /// From file `next` on, which begins a directory.
    fn new(run: &'a Run<'a>, volume: &'a Volume, next: u64) -> Self {
        Self {
            run,
            volume,
            next,
            parent: Ino::ROOT,
        }
    }

    fn make(&mut self, files: u64) -> anyhow::Result<()> {
        let body = [0x61; FILE_BYTES];
        for number in self.next..self.next + files {
            self.run.interrupt.check()?;
            let path = path_of(number);
            let name = |name: Option<&std::ffi::OsStr>| {
                name.expect("a path of two names")
                    .as_encoded_bytes()
                    .to_vec()
            };
            if number % FILES_A_DIRECTORY == 0 || self.parent == Ino::ROOT {
                let dir = name(path.parent().map(Path::as_os_str));
                self.parent = match self.volume.lookup(Ino::ROOT, &dir) {
                    Ok(found) => found.ino,
                    Err(_) => self.volume.mkdir(Caller::ROOT, Ino::ROOT, &dir, 0o755)?.ino,
                };
            }
            let file = self.volume.mknod(
                Caller::ROOT,
                self.parent,
                &name(path.file_name()),
                0o100_644,
                0,
            )?;
            self.volume.write(file.ino, 0, &body, false, false)?;
        }
        self.next += files;
        Ok(())
    }
}

impl Run<'_> {
    /// Everything that is done without FUSE. Leaves a volume that was closed, with `files` files and no more.
    pub(super) fn one_big_volume(&mut self, files: u64, entries: u64) -> anyhow::Result<()> {
        let dir = self.scratch.fresh_dir(NAME)?;
        debug_assert_eq!(dir, self.dir());
        let daemon = Self::hafsd(&dir);
        daemon
            .ctl(&["volume", "create", NAME, "--size", "1TiB"])
            .ok();
        let data = daemon.data_dir().to_owned();
        self.note(&daemon);
        daemon.stop();
        let store = Store::only_one_in(&data)?;
        self.make_files(&store, files)?;
        let volume = self.kills(&store, files)?;
        let disk = disk_bytes(&store.dir)? as f64 / files as f64;
        self.figure("disk space of a file", disk, "B");
        self.lookups(&volume, files)?;
        self.directory(&volume, entries)?;
        self.sparse(&volume)?;
        volume.close()?;
        Ok(())
    }

    fn make_files(&mut self, store: &Store, files: u64) -> anyhow::Result<()> {
        let volume = store.open()?;
        // The last ones are made before the kills.
        let files = files - KILLS * files_a_kill(files);
        let part = files.div_ceil(10);
        let mut made = 0;
        while made < files {
            let begin = Instant::now();
            let count = part.min(files - made);
            let mut maker = Maker::new(self, &volume, made);
            maker.make(count)?;
            made = maker.next;
            let rate = count as f64 / begin.elapsed().as_secs_f64();
            self.figure(
                format!("create + write {FILE_BYTES} B without FUSE, up to {made}"),
                rate,
                "/s",
            );
        }
        self.own_memory("after the creates")?;
        volume.close()?;
        Ok(())
    }

    /// Kills it while it makes the last files, several times; gives the volume that the last kill left.
    fn kills(&mut self, store: &Store, files: u64) -> anyhow::Result<Volume> {
        let mut volume = store.open()?;
        let mut seconds = Vec::new();
        let each = files_a_kill(files);
        for kill in 0..KILLS {
            let first = files - (KILLS - kill) * each;
            Maker::new(self, &volume, first).make(each)?;
            volume.crash();
            drop_caches()?;
            let begin = Instant::now();
            volume = store.open()?;
            seconds.push(begin.elapsed().as_secs_f64());
        }
        self.times(
            "open without FUSE, killed while creating, cache dropped",
            &seconds,
            Some(5.0),
        );
        Ok(volume)
    }

    fn lookups(&mut self, volume: &Volume, files: u64) -> anyhow::Result<()> {
        let lookups = LOOKUPS.min(files);
        let begin = Instant::now();
        for number in scattered(files).take(usize::try_from(lookups)?) {
            self.interrupt.check()?;
            let mut parent = Ino::ROOT;
            for name in &path_of(number) {
                parent = volume.lookup(parent, name.as_encoded_bytes())?.ino;
            }
        }
        let rate = lookups as f64 / begin.elapsed().as_secs_f64();
        self.figure("lookup of a path at random, without FUSE", rate, "/s");
        self.own_memory("after the lookups")
    }

    fn directory(&mut self, volume: &Volume, entries: u64) -> anyhow::Result<()> {
        let dir = volume.mkdir(Caller::ROOT, Ino::ROOT, b"many", 0o755)?.ino;
        let begin = Instant::now();
        for number in 0..entries {
            self.interrupt.check()?;
            let name = format!("entry-{number}");
            volume.mknod(Caller::ROOT, dir, name.as_bytes(), 0o100_644, 0)?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            format!("create in a directory of {entries} entries"),
            entries as f64 / seconds,
            "/s",
        );
        let begin = Instant::now();
        let mut seen = 0_u64;
        volume.readdir(dir, 0, &mut |_| {
            seen += 1;
            true
        })?;
        let seconds = begin.elapsed().as_secs_f64();
        if seen != entries + 2 {
            bail!("the big directory has {seen} entries of {entries} and two");
        }
        self.figure(
            format!("readdir of a directory of {entries} entries"),
            entries as f64 / seconds,
            "/s",
        );
        let begin = Instant::now();
        for number in 0..entries {
            self.interrupt.check()?;
            volume.unlink(dir, format!("entry-{number}").as_bytes())?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            format!("unlink in a directory of {entries} entries"),
            entries as f64 / seconds,
            "/s",
        );
        volume.rmdir(Ino::ROOT, b"many")?;
        volume.reclaim_orphans();
        Ok(())
    }

    fn sparse(&mut self, volume: &Volume) -> anyhow::Result<()> {
        let file = volume
            .mknod(Caller::ROOT, Ino::ROOT, b"sparse", 0o100_644, 0)?
            .ino;
        let piece = [0x33; 4096];
        let begin = Instant::now();
        let pages = scattered(SPARSE_BYTES / 4096).take(usize::try_from(SPARSE_WRITES)?);
        for page in pages {
            self.interrupt.check()?;
            volume.write(file, page * 4096, &piece, false, false)?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            "4 KiB write at random in a sparse file of a TiB",
            SPARSE_WRITES as f64 / seconds,
            "/s",
        );
        let begin = Instant::now();
        let mut at = 0;
        let mut extents = 0_u64;
        while let Ok(data) = volume.seek(file, at, SeekTo::Data) {
            at = volume.seek(file, data, SeekTo::Hole)?;
            extents += 1;
        }
        let seconds = begin.elapsed().as_secs_f64();
        self.figure(
            "SEEK_DATA and SEEK_HOLE over a sparse file of a TiB",
            extents as f64 / seconds,
            "/s",
        );
        let begin = Instant::now();
        volume.unlink(Ino::ROOT, b"sparse")?;
        volume.reclaim(file)?;
        self.figure(
            "removal of a sparse file of a TiB",
            begin.elapsed().as_secs_f64(),
            "s",
        );
        Ok(())
    }

    /// Of this process, which holds the volume.
    fn own_memory(&mut self, when: &str) -> anyhow::Result<()> {
        let resident = Resident::of(rustix::process::getpid())?;
        self.figure(
            format!("memory of the program with the volume, {when}"),
            resident.now_mib,
            "MiB",
        );
        Ok(())
    }
}

fn files_a_kill(files: u64) -> u64 {
    FILES_A_KILL.min(files / (2 * KILLS))
}

/// Blocks that everything below `dir` takes, bytes.
fn disk_bytes(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            bytes += disk_bytes(&entry.path())?;
        }
    }
    Ok(bytes)
}
