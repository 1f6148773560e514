//! File handles: what name_to_handle_at(2) gives, open_by_handle_at(2) finds again, also after the kernel forgot all.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hafs_tests::{Handle, requirement};
use rustix::fs::Advice;

use crate::Mounted;
use crate::user::on_hafs_and_ext4;

/// For an inode that others may hold for a moment.
const FORGET_LIMIT: Duration = Duration::from_secs(60);

/// Has the kernel forget every name and inode that nobody uses.
fn forget_all() {
    fs::write("/proc/sys/vm/drop_caches", "2").expect("root may");
}

/// Has the kernel forget what the handle is of, and opens it: on hafs that has to show as a LOOKUP, which the kernel sends only
/// for an inode that it has not.
fn open_forgotten(
    mounted: &Mounted,
    handle: &Handle,
    mount: &File,
    flags: i32,
) -> io::Result<File> {
    let is_hafs = mount.metadata()?.dev() == fs::metadata(mounted.mount.path())?.dev();
    let lookups = || mounted.daemon.requests("v", "lookup");
    let deadline = Instant::now() + FORGET_LIMIT;
    loop {
        forget_all();
        let before = settled(lookups);
        let opened = handle.open(mount, flags);
        if !is_hafs || settled(lookups) > before {
            return opened;
        }
        assert!(Instant::now() < deadline, "the kernel does not forget it");
    }
}

/// Writes the file's pages back and drops them.
fn release_pages(path: &Path) {
    let file = File::open(path).expect("it is there");
    file.sync_all().expect("room");
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
}

/// A count that grows no more: requests are answered first, and counted then.
fn settled(count: impl Fn() -> u64) -> u64 {
    let mut last = count();
    loop {
        let now = count();
        if now == last {
            return now;
        }
        last = now;
    }
}

#[test]
fn handles_outlive_the_cache_and_not_the_file() {
    if !requirement::mounts_work("file handles") {
        return;
    }
    let mounted = Mounted::new();
    for place in on_hafs_and_ext4(&mounted).iter() {
        let at = |name: &str| place.join(name);
        fs::create_dir_all(at("one/two/three")).unwrap();
        fs::write(at("one/two/file"), "text").unwrap();
        fs::write(at("gone"), "x").unwrap();
        let root = File::open(place).unwrap();
        let (file, dir) = (
            Handle::of(&at("one/two/file")),
            Handle::of(&at("one/two/three")),
        );
        let gone = Handle::of(&at("gone"));
        let evicted = |handle: &Handle, flags| open_forgotten(&mounted, handle, &root, flags);
        let text = |mut file: File| io::read_to_string(&mut file).unwrap();
        assert_eq!(text(file.open(&root, libc::O_RDONLY).unwrap()), "text");
        // An inode with pages, or dirty ones, is not forgotten.
        release_pages(&at("one/two/file"));
        assert_eq!(text(evicted(&file, libc::O_RDONLY).unwrap()), "text");
        let opened = evicted(&dir, libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
        let path = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap();
        assert_eq!(path, at("one/two/three"), "its parents are found again");
        drop(opened);
        // Moved and renamed it is the same file.
        fs::rename(at("one/two/file"), at("moved")).unwrap();
        release_pages(&at("moved"));
        assert_eq!(text(evicted(&file, libc::O_RDONLY).unwrap()), "text");
        fs::remove_file(at("gone")).unwrap();
        let is_stale = |result: io::Result<File>| {
            let error = result.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{place:?}");
        };
        is_stale(gone.open(&root, libc::O_RDONLY));
        is_stale(evicted(&gone, libc::O_RDONLY));
        // A new file never has a removed one's handle.
        for number in 0..50 {
            fs::write(at(&format!("new-{number}")), "x").unwrap();
        }
        is_stale(gone.open(&root, libc::O_RDONLY));
    }
    mounted.end();
}
