//! The threads that serve the lossy disk, with open files of their own.
//!
//! A test that is killed must not hang: its threads may be waiting for hafsd, hafsd for this filesystem, and a process whose
//! threads wait for a FUSE filesystem ends only when that answers or closes /dev/fuse. So the serving threads share
//! no table of descriptors with the rest of the process: when they are killed, /dev/fuse closes, and everybody gets an error.
//!
//! Invariant: descriptors of the disk and of /dev/fuse are made, used and closed on these threads alone.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use fuser::{Config, INodeNo, MountOption, Notifier, Session, SessionACL};

use super::disk::Disk;
use super::serve::Serve;

/// Threads that answer requests: a sync holds one while it takes its time.
const THREADS: usize = 8;
/// Commands that wait; the test sends one at a time.
const COMMANDS: usize = 1;

type Command = Box<dyn FnOnce(&Disk, &Notifier) + Send>;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Server {
    commands: SyncSender<Command>,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Mounts `backing` on `dir`.
    ///
    /// # Panics
    /// If that is not possible.
    pub(super) fn start(backing: &Path, dir: &Path, seed: u64) -> Self {
        let (backing, dir) = (backing.to_owned(), dir.to_owned());
        let (commands, received) = sync_channel::<Command>(COMMANDS);
        let (mounted, wait) = sync_channel(1);
        let thread = thread::spawn(move || {
            own_descriptors()?;
            let disk = Arc::new(Disk::open(&backing, seed)?);
            let session = mount(&disk, dir)?;
            let notifier = session.notifier();
            let session = session.spawn()?;
            mounted.send(()).expect("the test waits");
            for command in received {
                command(&disk, &notifier);
            }
            session.join()
        });
        if wait.recv().is_err() {
            let why = thread.join().expect("mounting does not panic");
            panic!("the lossy filesystem is not mounted: {why:?}");
        }
        Self { commands, thread }
    }

    /// Has a thread of the server do something.
    pub(super) fn call<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Disk) -> T + Send + 'static,
    ) -> T {
        let (answer, answered) = sync_channel(1);
        let command: Command = Box::new(move |disk, _| {
            let _ = answer.send(what(disk));
        });
        self.commands.send(command).expect("the server runs");
        answered.recv().expect("no command panics")
    }

    /// Has the kernel forget what it has cached.
    pub(super) fn forget_what_was_read(&self) {
        let (answer, answered) = sync_channel(1);
        let command: Command = Box::new(move |disk, notifier| {
            for file in disk.files() {
                // The kernel may not know the file.
                let _ = notifier.inval_inode(INodeNo(file), 0, 0);
            }
            let _ = answer.send(());
        });
        self.commands.send(command).expect("the server runs");
        answered.recv().expect("no command panics");
    }

    /// Waits for the end of the threads, after the connection has ended.
    pub(super) fn end(self) -> io::Result<()> {
        drop(self.commands);
        match self.thread.join().expect("the server does not panic") {
            // How reading requests ends when the connection was aborted.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            ended => ended,
        }
    }
}

fn mount(disk: &Arc<Disk>, dir: PathBuf) -> io::Result<Session<Serve>> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("lossy".to_owned()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    Session::new(Serve(Arc::clone(disk)), dir, &config)
}

/// From here on this thread, and those that it starts, have a table of descriptors of their own, empty but for the
/// standard ones.
fn own_descriptors() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    #[expect(unsafe_code, reason = "no safe wrapper; see the top of this file")]
    // SAFETY: the thread is new and holds no descriptor yet, so none that anything owns is closed or changes its meaning here.
    let done = unsafe {
        libc::unshare(libc::CLONE_FILES) == 0 && libc::close_range(FIRST, libc::c_uint::MAX, 0) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
