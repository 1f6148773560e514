//! Mappings, O_DIRECT and running programs: all see the same bytes.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use hafs_tests::requirement;
use rustix::fs::copy_file_range;

use crate::Mounted;

const PAGE: usize = 4096;
const CHILD: &str = "HAFS_TEST_MAPPING";
const OTHER: &str = "HAFS_TEST_OTHER_MAPPING";

/// Two pages of a file.
pub(crate) struct Map(*mut u8);

#[expect(unsafe_code, reason = "a mapping is what is tested")]
impl Map {
    /// What is stored shows in the file.
    pub(crate) fn shared(file: &File, offset: u64) -> Self {
        Self::new(file, offset, libc::MAP_SHARED)
    }

    /// What is stored shows nowhere else.
    fn private(file: &File) -> Self {
        Self::new(file, 0, libc::MAP_PRIVATE)
    }

    fn new(file: &File, offset: u64, flags: i32) -> Self {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let offset = i64::try_from(offset).expect("within a file");
        // SAFETY: a fresh mapping of an open file, which `drop` ends.
        let map = unsafe {
            let anywhere = std::ptr::null_mut();
            libc::mmap(anywhere, 2 * PAGE, prot, flags, file.as_raw_fd(), offset)
        };
        assert!(
            map != libc::MAP_FAILED,
            "{}",
            std::io::Error::last_os_error()
        );
        Self(map.cast())
    }

    fn get(&self, at: usize) -> u8 {
        assert!(at < 2 * PAGE);
        // SAFETY: within the mapping.
        unsafe { self.0.add(at).read_volatile() }
    }

    pub(crate) fn set(&self, at: usize, byte: u8) {
        assert!(at < 2 * PAGE);
        // SAFETY: within the mapping, to which there are no references.
        unsafe { self.0.add(at).write_volatile(byte) }
    }
}

#[expect(unsafe_code, reason = "a mapping is what is tested")]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing refers to it any more.
        let result = unsafe { libc::munmap(self.0.cast(), 2 * PAGE) };
        assert_eq!(result, 0);
    }
}

#[repr(align(4096))]
struct Pages([u8; 2 * PAGE]);

fn open(path: &Path, flags: i32) -> File {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags);
    options.open(path).expect("a file of the test")
}

#[test]
fn mappings_writes_and_direct_io_agree() {
    if !requirement::mounts_work("mappings beside other calls") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        let (file, direct) = (open(&path, 0), open(&path, libc::O_DIRECT));
        file.write_all_at(&[1; 2 * PAGE], 0).unwrap();
        let (shared, private) = (Map::shared(&file, 0), Map::private(&file));
        assert_eq!((shared.get(0), private.get(0)), (1, 1));
        // A write shows in mappings, a store in reads, cached and direct.
        file.write_all_at(&[2], 10).unwrap();
        assert_eq!((shared.get(10), private.get(10)), (2, 2));
        shared.set(20, 3);
        let mut pages = Pages([0; 2 * PAGE]);
        file.read_exact_at(&mut pages.0[..100], 0).unwrap();
        assert_eq!(pages.0[20], 3);
        direct.read_exact_at(&mut pages.0, 0).unwrap();
        assert_eq!((pages.0[10], pages.0[20]), (2, 3));
        // A copy has it too, and leaves what is stored beside it in its target.
        let copy = open(&mounted.mount.join("copy"), 0);
        copy.write_all_at(&[8; 2 * PAGE], 0).unwrap();
        let target = Map::shared(&copy, 0);
        target.set(200, 6);
        shared.set(30, 5);
        let copied = copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 100).unwrap();
        assert_eq!(copied, 100);
        copy.read_exact_at(&mut pages.0, 0).unwrap();
        assert_eq!([20, 30, 100, 200].map(|at| pages.0[at]), [3, 5, 8, 6]);
        assert_eq!([20, 30, 100, 200].map(|at| target.get(at)), [3, 5, 8, 6]);
        drop((copy, target));
        // A direct write shows in both; what was stored in a private mapping stays in it.
        private.set(PAGE, 9);
        pages.0.fill(4);
        direct.write_all_at(&pages.0, 0).unwrap();
        assert_eq!((shared.get(0), shared.get(PAGE), private.get(0)), (4, 4, 4));
        assert_eq!(private.get(PAGE), 9);
        file.read_exact_at(&mut pages.0[..PAGE], PAGE as u64)
            .unwrap();
        assert!(pages.0[..PAGE].iter().all(|&byte| byte == 4));
        // FUSE takes direct requests of any alignment.
        direct.write_all_at(&pages.0[..100], 7).unwrap();
        // Past the end of a file that was cut and grown again are zeros.
        file.set_len(100).unwrap();
        assert_eq!((shared.get(99), shared.get(100)), (4, 0));
        file.set_len(2 * PAGE as u64).unwrap();
        assert_eq!((shared.get(100), shared.get(PAGE)), (0, 0));
        drop((shared, private));
        file.sync_all().unwrap();
        drop((file, direct));
        mounted.end();
    }
}

#[test]
fn a_page_that_was_cut_off_is_sigbus() {
    if let Some(path) = std::env::var_os(CHILD) {
        let file = open(path.as_ref(), 0);
        let map = Map::shared(&file, 0);
        assert_eq!((map.get(0), map.get(PAGE)), (1, 1));
        file.set_len(100).unwrap();
        assert_eq!(map.get(200), 0);
        map.get(PAGE);
        unreachable!("the page is gone");
    }
    if !requirement::mounts_work("SIGBUS") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        fs::write(&path, [1; 2 * PAGE]).unwrap();
        let name = "memory::a_page_that_was_cut_off_is_sigbus";
        let child = in_another_process(name, CHILD, &path);
        assert_eq!(child.signal(), Some(libc::SIGBUS), "{child:?}");
        mounted.end();
    }
}

/// Runs the test `name` of this program in a process of its own, which finds `path` in `variable`.
fn in_another_process(name: &str, variable: &str, path: &Path) -> ExitStatus {
    Command::new(std::env::current_exe().expect("the test's program"))
        .args(["--exact", name])
        .env(variable, path)
        .status()
        .expect("it runs again")
}

#[test]
fn what_one_process_maps_others_read() {
    if let Some(path) = std::env::var_os(OTHER) {
        let file = open(path.as_ref(), 0);
        let mut page = [0; PAGE];
        file.read_exact_at(&mut page, 0).unwrap();
        let map = Map::shared(&file, 0);
        assert_eq!((page[10], map.get(10)), (2, 2), "stored before");
        map.set(20, 3);
        file.write_all_at(&[4], PAGE as u64).unwrap();
        return;
    }
    if !requirement::mounts_work("mappings of two processes") {
        return;
    }
    for mounted in Mounted::in_both_modes() {
        let path = mounted.mount.join("file");
        let file = open(&path, 0);
        file.write_all_at(&[1; 2 * PAGE], 0).unwrap();
        let map = Map::shared(&file, 0);
        map.set(10, 2);
        let name = "memory::what_one_process_maps_others_read";
        assert!(in_another_process(name, OTHER, &path).success());
        assert_eq!((map.get(20), map.get(PAGE)), (3, 4), "stored and written");
        drop((map, file));
        mounted.end();
    }
}
