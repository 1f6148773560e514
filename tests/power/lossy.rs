//! The lossy disk itself, as processes see it: what it keeps, what it takes, and the errors that it is told to give.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hafs_tests::lossy::{Cut, Fault, Loss, Lossy, Mode, Request};
use hafs_tests::{Scratch, requirement};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A disk in a scratch directory.
struct Fixture {
    // Dropped before the directory that it lies in.
    lossy: Option<Lossy>,
    scratch: Scratch,
}

impl Fixture {
    /// `None` where nothing can be mounted.
    fn new() -> Option<Self> {
        if !requirement::mounts_work("the lossy filesystem") {
            return None;
        }
        let scratch = Scratch::new();
        let mut fixture = Self {
            lossy: None,
            scratch,
        };
        fixture.mount();
        Some(fixture)
    }

    fn mount(&mut self) {
        let (disk, dir) = (self.scratch.dir("disk"), self.scratch.dir("data"));
        self.lossy = Some(Lossy::mount(&disk, &dir, 1));
    }

    fn lossy(&self) -> &Lossy {
        self.lossy.as_ref().expect("mounted")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lossy().dir().join(name)
    }

    /// Cuts the power and mounts what is left.
    fn cut(&mut self, mode: Mode) -> Loss {
        let loss = self.lossy().cut(Cut { mode, seed: 1 });
        let refused = fs::read_dir(self.lossy().dir()).expect_err("there is no power");
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
        self.lossy = None;
        self.mount();
        loss
    }
}

fn sync(path: &Path) {
    let file = File::open(path).expect("it is there");
    file.sync_all().expect("the disk works");
}

fn names(dir: &Path) -> Vec<String> {
    let list = fs::read_dir(dir).expect("the disk works");
    let names = list.map(|entry| entry.expect("the disk works").file_name());
    let mut names: Vec<String> = names
        .map(|name| name.into_string().expect("plain names"))
        .collect();
    names.sort();
    names
}

#[track_caller]
fn refused<T>(result: std::io::Result<T>, errno: Errno) {
    let error = result.err().expect("refused");
    assert_eq!(Errno::from_io_error(&error), Some(errno));
}

#[test]
fn synced_bytes_under_a_synced_name_stay_and_nothing_else() {
    let Some(mut disk) = Fixture::new() else {
        return;
    };
    let dir = disk.lossy().dir().to_owned();
    let mut file = File::create(disk.path("both")).unwrap();
    file.write_all(&[1; 10_000]).unwrap();
    file.sync_all().unwrap();
    fs::write(disk.path("name"), "bytes that nobody synced").unwrap();
    sync(&dir);
    let mut bytes = File::create(disk.path("bytes")).unwrap();
    bytes.write_all(&[2; 10_000]).unwrap();
    bytes.sync_all().unwrap();
    file.write_all(&[3; 10_000]).unwrap();
    assert_eq!(fs::read(disk.path("both")).unwrap().len(), 20_000);
    drop((file, bytes));
    let loss = disk.cut(Mode::Everything);
    assert_eq!(names(&dir), ["both", "name"]);
    assert_eq!(fs::read(disk.path("both")).unwrap(), vec![1; 10_000]);
    assert_eq!(fs::read(disk.path("name")).unwrap(), b"");
    assert_eq!((loss.unsynced_names, loss.lost_names), (1, 1));
    assert_eq!(loss.bytes_in("/both"), 10_000);
}

#[test]
fn a_clean_unmount_keeps_everything() {
    let Some(mut disk) = Fixture::new() else {
        return;
    };
    fs::create_dir_all(disk.path("a/b")).unwrap();
    fs::write(disk.path("a/b/file"), [5; 5000]).unwrap();
    fs::hard_link(disk.path("a/b/file"), disk.path("link")).unwrap();
    std::os::unix::fs::symlink("a/b", disk.path("symlink")).unwrap();
    disk.lossy = None;
    assert_eq!(
        fs::read(disk.scratch.join("disk/a/b/file")).unwrap(),
        [5; 5000]
    );
    disk.mount();
    assert_eq!(fs::read(disk.path("symlink/file")).unwrap(), [5; 5000]);
    fs::write(disk.path("link"), "both names are one file").unwrap();
    let through_the_other = fs::read_to_string(disk.path("a/b/file")).unwrap();
    assert_eq!(through_the_other, "both names are one file");
    let ino = |name| std::os::unix::fs::MetadataExt::ino(&fs::metadata(disk.path(name)).unwrap());
    assert_eq!(ino("link"), ino("a/b/file"));
}

#[test]
fn renames_and_removals_come_back() {
    let Some(mut disk) = Fixture::new() else {
        return;
    };
    let dir = disk.lossy().dir().to_owned();
    fs::create_dir(disk.path("dir")).unwrap();
    for name in ["old", "removed", "dir/inside"] {
        fs::write(disk.path(name), name).unwrap();
        sync(&disk.path(name));
    }
    sync(&disk.path("dir"));
    sync(&dir);
    fs::write(disk.path("new"), "new").unwrap();
    sync(&disk.path("new"));
    fs::rename(disk.path("new"), disk.path("old")).unwrap();
    fs::remove_file(disk.path("removed")).unwrap();
    fs::remove_file(disk.path("dir/inside")).unwrap();
    sync(&disk.path("dir"));
    refused(fs::remove_dir(disk.path("old")), Errno::NOTDIR);
    fs::remove_dir(disk.path("dir")).unwrap();
    assert_eq!(names(&dir), ["old"]);
    let loss = disk.cut(Mode::Everything);
    assert_eq!(names(&dir), ["dir", "old", "removed"]);
    assert_eq!(names(&disk.path("dir")), [""; 0]);
    assert_eq!(fs::read(disk.path("old")).unwrap(), b"old");
    assert_eq!(fs::read(disk.path("removed")).unwrap(), b"removed");
    assert_eq!(loss.lost_names, 4);
}

#[test]
fn direct_writes_preallocation_truncation_and_mappings() {
    let Some(mut disk) = Fixture::new() else {
        return;
    };
    let dir = disk.lossy().dir().to_owned();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(disk.path("file"))
        .unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    file.write_all_at(&[1; 8192], 4096).unwrap();
    rustix::fs::fdatasync(&file).unwrap();
    sync(&dir);
    file.write_all_at(&[2; 4096], 8192).unwrap();
    file.set_len(4096).unwrap();
    // Neither is a promise.
    file.set_len(1 << 20).unwrap();
    drop(file);
    assert_eq!(fs::read(disk.path("file")).unwrap(), vec![0; 1 << 20]);
    disk.cut(Mode::Everything);
    let left = fs::read(disk.path("file")).unwrap();
    assert_eq!(left.len(), 1 << 20);
    assert_eq!(left[4096..12_288], [1; 8192]);
    assert!(left[12_288..].iter().all(|byte| *byte == 0));
    let loss = disk.lossy().unsynced_bytes("");
    assert_eq!(loss, 0);
    mapping(&disk.path("file"));
    disk.cut(Mode::Everything);
    let left = fs::read(disk.path("file")).unwrap();
    assert_eq!(left[..4], [9, 0, 0, 0], "msync wrote the first page");
    assert_eq!(left[4096], 1);
}

/// Changes two pages through a shared mapping and syncs the first.
fn mapping(path: &Path) {
    const LEN: usize = 8192;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("it is there");
    let (fd, protection) = (file.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
    #[expect(unsafe_code, reason = "a mapping is what is tested")]
    // SAFETY: the range is mapped, used and unmapped here alone, and the file is longer.
    unsafe {
        let null = std::ptr::null_mut();
        let at = libc::mmap(null, LEN, protection, libc::MAP_SHARED, fd, 0);
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<u8>().write(9);
        assert_eq!(libc::msync(at, LEN, libc::MS_SYNC), 0);
        at.cast::<u8>().add(4096).write(9);
        assert_eq!(libc::munmap(at, LEN), 0);
    }
}

#[test]
fn a_fault_strikes_where_it_was_told_to_and_ends() {
    let Some(disk) = Fixture::new() else {
        return;
    };
    let lossy = disk.lossy();
    fs::create_dir(disk.path("log")).unwrap();
    let mut log = File::create(disk.path("log/1")).unwrap();
    let mut other = File::create(disk.path("other")).unwrap();
    let full = lossy.set_fault(
        Fault::new(&[Request::Write, Request::Name], Errno::NOSPC)
            .on("/log/")
            .after(1),
    );
    log.write_all(b"one is spared").unwrap();
    refused(log.write_all(b"full"), Errno::NOSPC);
    refused(File::create(disk.path("log/2")), Errno::NOSPC);
    other.write_all(b"elsewhere").unwrap();
    assert_eq!(lossy.fired(full), 2);
    lossy.heal(full);
    log.write_all(b"again").unwrap();
    fs::read(disk.path("log/1")).unwrap();
    let broken = lossy.set_fault(Fault::new(&[Request::Read], Errno::IO).on("/log/1"));
    refused(fs::read(disk.path("log/1")), Errno::IO);
    assert_eq!(fs::read(disk.path("other")).unwrap(), b"elsewhere");
    assert!(lossy.fired(broken) > 0);
    lossy.heal_all();
    assert_eq!(fs::read(disk.path("log/1")).unwrap(), b"one is sparedagain");
}

#[test]
fn a_failed_sync_is_told_once_and_a_cut_takes_what_it_should_have_written() {
    let Some(mut disk) = Fixture::new() else {
        return;
    };
    let file = File::create(disk.path("file")).unwrap();
    file.write_all_at(&[1; 8192], 0).unwrap();
    file.sync_all().unwrap();
    sync(disk.lossy().dir());
    disk.lossy()
        .set_fault(Fault::new(&[Request::Sync], Errno::IO).times(1));
    file.write_all_at(&[2; 8192], 0).unwrap();
    refused(file.sync_all(), Errno::IO);
    file.sync_all()
        .expect("the kernel takes the pages for clean");
    drop(file);
    assert_eq!(fs::read(disk.path("file")).unwrap(), [2; 8192]);
    disk.cut(Mode::Everything);
    assert_eq!(fs::read(disk.path("file")).unwrap(), [1; 8192]);
}

#[test]
fn a_failed_sync_shows_once_the_cache_is_empty() {
    let Some(disk) = Fixture::new() else {
        return;
    };
    let file = File::create(disk.path("file")).unwrap();
    file.write_all_at(&[1; 8192], 0).unwrap();
    file.sync_all().unwrap();
    disk.lossy()
        .set_fault(Fault::new(&[Request::Sync], Errno::IO).times(1));
    file.write_all_at(&[2; 4096], 0).unwrap();
    refused(file.sync_all(), Errno::IO);
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert_eq!(fs::read(disk.path("file")).unwrap(), [1; 8192]);
}

#[test]
fn the_power_goes_while_a_sync_runs() {
    let Some(mut disk) = Fixture::new() else {
        return;
    };
    let mut file = File::create(disk.path("file")).unwrap();
    sync(disk.lossy().dir());
    disk.lossy().set_sync_takes(Duration::from_secs(600));
    file.write_all(&[1; 4096]).unwrap();
    thread::scope(|scope| {
        let syncs = scope.spawn(|| file.sync_all());
        let start = Instant::now();
        while disk.lossy().running_syncs() == 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "it never begins");
            thread::park_timeout(LOOK);
        }
        disk.lossy().cut(Cut {
            mode: Mode::Everything,
            seed: 1,
        });
        refused(syncs.join().unwrap(), Errno::IO);
        assert!(start.elapsed() < Duration::from_secs(120));
    });
    drop(file);
    disk.lossy = None;
    disk.mount();
    assert_eq!(fs::read(disk.path("file")).unwrap(), b"");
}

#[test]
fn many_files_come_and_go() {
    let Some(disk) = Fixture::new() else {
        return;
    };
    for n in 0..2000 {
        let path = disk.path(&format!("file-{n}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&[7; 100]).unwrap();
        fs::remove_file(&path).unwrap();
        let mut text = Vec::new();
        file.write_all(&[8; 100]).unwrap();
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .unwrap()
            .read_to_end(&mut text)
            .unwrap();
        assert_eq!(text.len(), 200, "open and unlinked");
        if n % 50 == 0 {
            sync(disk.lossy().dir());
        }
    }
    let kept = fs::read_dir(disk.scratch.join("disk.live"))
        .unwrap()
        .count();
    assert!(kept < 1000, "{kept} files are kept");
}

/// A test that is killed must leave nobody hanging: here, a child of this process that runs the same filesystem.
#[test]
fn a_killed_server_takes_the_mount_with_it() {
    const CHILD: &str = "HAFS_LOSSY_CHILD";
    if let Some(dir) = std::env::var_os(CHILD) {
        let lossy = Lossy::mount(
            &Path::new(&dir).join("disk"),
            &Path::new(&dir).join("data"),
            1,
        );
        lossy.set_sync_takes(Duration::from_secs(600));
        let file = File::create(lossy.dir().join("file")).unwrap();
        let _ = file.sync_all();
        panic!("nobody answers");
    }
    if !requirement::mounts_work("the end of the lossy filesystem") {
        return;
    }
    let scratch = Scratch::new();
    let (_, data) = (scratch.dir("disk"), scratch.dir("data"));
    let _mount = hafs_tests::Mount::watch(&data);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lossy::a_killed_server_takes_the_mount_with_it"])
        .env(CHILD, scratch.path())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !data.join("file").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never mounts");
        thread::park_timeout(LOOK);
    }
    child.kill().unwrap();
    let ended = hafs_tests::command::wait_within(&mut child, Duration::from_secs(60));
    assert!(ended.is_some(), "it waits for its own filesystem for ever");
    refused(fs::read_dir(&data), Errno::NOTCONN);
}
