//! The local store against the conformance suite, and what only it promises: its directory, and kills.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rocksdb::{DB, Options};
use tempfile::TempDir;

use super::*;
use crate::conformance::{
    Fixture, HISTORY_REVS, apply, history, open_session, put, read, rev_of, tied,
};
use crate::store::{Op, list_all};

fn measures() -> Measures {
    Measures {
        history_revs_max: HISTORY_REVS,
        ..Measures::default()
    }
}

struct LocalFixture {
    dir: TempDir,
    /// Makes a new directory at each kill: see [`Fixture::kill_and_reopen`].
    kills: std::sync::atomic::AtomicU32,
}

impl LocalFixture {
    fn new() -> Self {
        let kills = std::sync::atomic::AtomicU32::new(0);
        Self {
            dir: TempDir::new().unwrap(),
            kills,
        }
    }

    fn path(&self, kills: u32) -> PathBuf {
        self.dir.path().join(format!("control-{kills}"))
    }
}

impl Fixture for LocalFixture {
    type Store = LocalStore;

    async fn create(&self) -> LocalStore {
        LocalStore::open_with(&self.path(0), measures()).unwrap()
    }

    /// What kill -9 leaves is what the files hold at that instant: they are copied while the store is open, and it is the
    /// copy that is opened.
    async fn kill_and_reopen(&self, store: LocalStore) -> LocalStore {
        let kills = self
            .kills
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
            + 1;
        let copy = self.path(kills);
        // Else RocksDB's compactions would change files between the copies of two of them.
        store.shared.db.cancel_all_background_work(true);
        // The writer may end a session meanwhile: a mark is older than what it marks, never newer.
        let mark = fs::read(self.path(kills - 1).join("mark")).unwrap();
        copy_dir(&self.path(kills - 1), &copy);
        fs::write(copy.join("mark"), mark).unwrap();
        drop(store);
        LocalStore::open_with(&copy, measures()).unwrap()
    }
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

mod suite {
    use super::LocalFixture;

    crate::conformance_suite!(LocalFixture::new());
}

#[test]
fn random_histories_are_those_of_the_model() {
    let cases = std::env::var("PROPTEST_CASES").map_or(60, |cases| cases.parse().unwrap());
    history::random_histories(LocalFixture::new, cases);
}

fn open(dir: &Path) -> Result<LocalStore, OpenError> {
    LocalStore::open(dir)
}

/// Every file under `dir` with its content.
pub(super) fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
            all.insert(path, Vec::new());
        } else {
            let content = fs::read(&path).unwrap();
            all.insert(path, content);
        }
    }
    all
}

/// Opens a directory that must be refused and left alone; the error, and the line that a user sees.
pub(super) fn refused(dir: &Path) -> (OpenError, String) {
    let before = files(dir);
    let error = open(dir).unwrap_err();
    assert_eq!(files(dir), before, "untouched");
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    (error, line)
}

/// A store with one key, closed.
fn made(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let store = open(dir).unwrap();
    runtime.block_on(apply(&store, vec![], vec![put("/a", "1")]));
}

#[test]
fn a_missing_directory_is_made_but_not_its_parents() {
    let dir = TempDir::new().unwrap();
    open(&dir.path().join("control")).unwrap();
    open(&dir.path().join("control")).unwrap();
    let deep = dir.path().join("no/such");
    let error = open(&deep).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Io {
                op: "open directory",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(!deep.parent().unwrap().exists());
}

#[test]
fn a_file_is_no_directory() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "x").unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot open directory {}", path.display())
    );
}

#[tokio::test]
async fn one_process_at_a_time() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        format!("{} is in use by another process", dir.path().display())
    );
    // A watch and a session that nobody looks after do not keep it.
    let (_watch, _session) = (store.watch("/".into(), 1), open_session(&store).await);
    drop(store);
    open(dir.path()).unwrap();
}

#[test]
fn another_programs_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("PG_VERSION"), "17\n").unwrap();
    let (error, line) = refused(dir.path());
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
    let want = format!(
        "{} is not a hafs control store: it holds PG_VERSION",
        dir.path().display()
    );
    assert_eq!(line, want);

    fs::remove_file(dir.path().join("PG_VERSION")).unwrap();
    for other in [
        "",
        "version 3\n",
        "hafs control store, format \n",
        "hafs control store, format 0\n",
    ] {
        fs::write(dir.path().join("FORMAT"), other).unwrap();
        let (error, _) = refused(dir.path());
        assert!(
            matches!(error, OpenError::Foreign { .. }),
            "{other:?}: {error:?}"
        );
    }
}

#[test]
fn another_programs_rocksdb_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut options = Options::default();
    options.create_if_missing(true);
    drop(DB::open(&options, dir.path()).unwrap());
    drop(DB::open(&options, dir.path().join("db")).unwrap());
    let (error, _) = refused(dir.path());
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
}

/// What is cleared away must be ours: a name is not enough.
#[test]
fn a_database_that_nothing_says_is_ours_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("db")).unwrap();
    fs::write(dir.path().join("db/precious"), "x").unwrap();
    for format_new in [
        None,
        Some(""),
        Some("hafs control"),
        Some("hafs control store, format 3\n"),
    ] {
        if let Some(format_new) = format_new {
            fs::write(dir.path().join("FORMAT.new"), format_new).unwrap();
        }
        let (error, _) = refused(dir.path());
        assert!(
            matches!(error, OpenError::Foreign { .. }),
            "{format_new:?}: {error:?}"
        );
    }
}

#[test]
fn a_newer_format_is_refused() {
    let dir = TempDir::new().unwrap();
    made(dir.path());
    fs::write(dir.path().join("FORMAT"), "hafs control store, format 3\n").unwrap();
    let (error, line) = refused(dir.path());
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 3,
                known: 2,
                ..
            }
        ),
        "{error:?}"
    );
    let want = "has control store format 3, this version of hafs knows formats up to 2";
    assert!(line.ends_with(want), "{line}");
}

#[test]
fn a_directory_without_permission_is_refused() {
    let dir = TempDir::new().unwrap();
    let control = dir.path().join("control");
    made(&control);
    let rw_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), rw_all).unwrap();
    for (mode, op) in [(0o700, "open directory"), (0o755, "write to")] {
        let path = control.clone();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        let before = files(&control);
        // The system call, unlike the C function, changes this thread alone.
        let error = std::thread::spawn(move || {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            open(&path).unwrap_err()
        });
        let error = error.join().unwrap();
        assert_eq!(
            error.to_string(),
            format!("cannot {op} {}", control.display())
        );
        let OpenError::Io { source, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(files(&control), before, "untouched");
    }
    open(&control).unwrap();
}

#[tokio::test]
async fn a_full_disk_is_refused_and_puts_too_but_not_deletions() {
    let dir = TempDir::new().unwrap();
    let control = dir.path().join("control");
    let full = Measures {
        open_free_bytes_min: u64::MAX,
        ..Measures::default()
    };
    let error = LocalStore::open_with(&control, full).unwrap_err();
    assert!(matches!(error, OpenError::Full { .. }), "{error:?}");
    assert!(!control.exists());

    let store = open(&control).unwrap();
    apply(&store, vec![], vec![put("/a", "1")]).await;
    let session = open_session(&store).await;
    apply(&store, vec![], vec![tied("/b", &session)]).await;
    drop((store, session));
    let before = files(&control);
    let error = LocalStore::open_with(&control, full).unwrap_err();
    assert!(matches!(error, OpenError::Full { .. }), "{error:?}");
    assert_eq!(files(&control), before, "untouched");

    let full = Measures {
        put_free_bytes_min: u64::MAX,
        ..Measures::default()
    };
    let store = LocalStore::open_with(&control, full).unwrap();
    let answer = store
        .txn(Txn {
            then: vec![put("/c", "1")],
            ..Txn::default()
        })
        .await;
    assert!(
        matches!(answer, Err(ControlError::Unavailable(_))),
        "{answer:?}"
    );
    assert_eq!(rev_of(&store).await, 3, "the session's end, nothing since");
    apply(&store, vec![], vec![Op::Del("/a".into())]).await;
    assert_eq!(read(&store, "/a").await, None);
}

#[test]
fn a_making_that_was_cut_short_is_begun_anew() {
    let dir = TempDir::new().unwrap();
    for begun in [
        "",
        "hafs control",
        "hafs control store, format 1\n",
        "hafs control store, format 2\n",
    ] {
        fs::write(dir.path().join("FORMAT.new"), begun).unwrap();
        open(dir.path()).unwrap();
        assert!(!dir.path().join("FORMAT.new").exists());
        fs::remove_file(dir.path().join("FORMAT")).unwrap();
        fs::remove_file(dir.path().join("mark")).unwrap();
        fs::remove_dir_all(dir.path().join("db")).unwrap();
    }
    // With a database that is not whole.
    fs::write(
        dir.path().join("FORMAT.new"),
        "hafs control store, format 1\n",
    )
    .unwrap();
    fs::create_dir(dir.path().join("db")).unwrap();
    fs::write(dir.path().join("db/CURRENT"), "MANI").unwrap();
    fs::write(dir.path().join("mark"), "hC").unwrap();
    open(dir.path()).unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn a_lost_database_is_not_a_new_store() {
    let dir = TempDir::new().unwrap();
    made(dir.path());
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    let (error, line) = refused(dir.path());
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    assert_eq!(
        line,
        format!("the control store in {} is damaged", dir.path().display())
    );
}

/// The default of RocksDB would open such a store as it was before the damage.
#[tokio::test]
async fn damage_in_the_middle_of_the_log_is_not_skipped() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    for _ in 0..50 {
        apply(&store, vec![], vec![put("/a", "0123456789")]).await;
    }
    let copy = TempDir::new().unwrap();
    let copy = copy.path().join("copy");
    store.shared.db.cancel_all_background_work(true);
    copy_dir(dir.path(), &copy);
    drop(store);
    let log = files(&copy.join("db"))
        .into_keys()
        .find(|path| path.extension().is_some_and(|e| e == "log"));
    let log = log.unwrap();
    let mut bytes = fs::read(&log).unwrap();
    let written = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    bytes[written / 2] ^= 1;
    fs::write(&log, bytes).unwrap();
    let error = open(&copy).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
}

#[tokio::test]
async fn the_history_is_bounded_in_bytes() {
    let dir = TempDir::new().unwrap();
    let small = Measures {
        history_bytes_max: 1000,
        ..Measures::default()
    };
    let store = LocalStore::open_with(dir.path(), small).unwrap();
    let value = || bytes::Bytes::from(vec![b'x'; 150]);
    for _ in 0..20 {
        apply(&store, vec![], vec![Op::Put("/a".into(), value(), None)]).await;
    }
    let error = store
        .watch("/".into(), 1)
        .next()
        .await
        .unwrap()
        .unwrap_err();
    let WatchError::Compacted { oldest } = error else {
        panic!("{error:?}")
    };
    assert!(
        (16..=19).contains(&oldest),
        "about 400 bytes each: {oldest}"
    );
    // One that is larger than all of it stays until the next.
    let large = vec![b'x'; 5000].into();
    apply(&store, vec![], vec![Op::Put("/a".into(), large, None)]).await;
    assert_eq!(
        store
            .watch("/".into(), 21)
            .next()
            .await
            .unwrap()
            .unwrap()
            .rev,
        21
    );
    let error = store
        .watch("/".into(), 20)
        .next()
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, WatchError::Compacted { oldest: 21 }),
        "{error:?}"
    );
}

#[tokio::test]
async fn watches_of_a_closed_store_end() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let mut watch = store.watch("/".into(), 1);
    apply(&store, vec![], vec![put("/a", "1")]).await;
    watch.next().await.unwrap().unwrap();
    drop(store);
    let error = watch.next().await.unwrap().unwrap_err();
    assert!(matches!(error, WatchError::Unavailable(_)), "{error:?}");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn after_a_failed_write_nothing_is_answered() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    apply(&store, vec![], vec![put("/a", "1")]).await;
    let mut watch = store.watch("/".into(), 2);
    store.shared.fail(Arc::new(LocalError::Stopped));
    assert!(matches!(
        watch.next().await,
        Some(Err(WatchError::Fatal(_)))
    ));
    assert!(matches!(
        store.get(&"/a".into()).await,
        Err(ControlError::Fatal(_))
    ));
    assert!(matches!(
        store.txn(Txn::default()).await,
        Err(ControlError::Fatal(_))
    ));
    assert!(matches!(
        store.list(&"".into(), None, 1).await,
        Err(ControlError::Fatal(_))
    ));
    assert!(matches!(
        store.session(SESSION_TTL_MIN).await,
        Err(ControlError::Fatal(_))
    ));
}

const CHILD_DIR: &str = "HAFS_TEST_CONTROL_DIR";

/// Not a test of its own: the process that the next one kills. Says each revision once it is answered.
#[tokio::test]
#[ignore = "run by a_killed_process_loses_no_answered_txn"]
async fn child_that_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let store = open(Path::new(&dir)).unwrap();
    let session = open_session(&store).await;
    for n in rev_of(&store).await.. {
        let key = format!("/k/{:03}", n % 100);
        let count = || Op::Put("/count".into(), n.to_string().into(), None);
        let then = vec![
            count(),
            Op::Put(key.into(), n.to_string().into(), None),
            tied("/alive", &session),
        ];
        println!("rev {}", apply(&store, vec![], then).await);
    }
}

#[test]
fn a_killed_process_loses_no_answered_txn() {
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (mut least, mut answers) = (0, 0);
    for round in 1..=10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::local::tests::child_that_writes_until_killed",
            ])
            .args(["--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut acknowledged = least;
        let mut read_rev = |line: String| {
            if let Some(rev) = line.strip_prefix("rev ") {
                (acknowledged, answers) = (rev.parse().unwrap(), answers + 1);
            }
        };
        for line in lines.by_ref().take(37 * round) {
            read_rev(line);
        }
        child.kill().unwrap();
        // What it had still said.
        lines.for_each(read_rev);
        child.wait().unwrap();

        let store = open(dir.path()).unwrap();
        let (rev, kv) = runtime.block_on(list_all(&store, &"".into())).unwrap();
        assert!(
            rev >= acknowledged && acknowledged > least,
            "{rev} {acknowledged} {least}"
        );
        let value = |key: &str| {
            let found = kv
                .iter()
                .find(|found| found.key == Key::from(key.to_owned()));
            found.map(|found| String::from_utf8(found.value.to_vec()).unwrap())
        };
        let count: u64 = value("/count").unwrap().parse().unwrap();
        // Whole, or not at all; the session of the dead process is over.
        assert_eq!(
            value(&format!("/k/{:03}", count % 100)),
            Some(count.to_string())
        );
        assert_eq!(value("/alive"), None);
        least = rev;
    }
    assert!(answers > 100, "{answers}");
}

/// A database that contradicts itself is told, by an error and not by a panic or an endless look.
#[tokio::test]
async fn a_gap_in_the_history_is_told() {
    for lost in [2_u64, 3] {
        let dir = TempDir::new().unwrap();
        let store = open(dir.path()).unwrap();
        for _ in 0..3 {
            apply(&store, vec![], vec![put("/a", "1")]).await;
        }
        let history = store.shared.column_family(HISTORY);
        store
            .shared
            .db
            .delete_cf(history, lost.to_be_bytes())
            .unwrap();
        let mut watch = store.watch("/".into(), lost);
        let error = watch.next().await.unwrap().unwrap_err();
        assert!(matches!(error, WatchError::Fatal(_)), "{error:?}");
    }
}

#[tokio::test]
async fn damaged_rows_are_told() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    apply(
        &store,
        vec![],
        vec![put("/a", "1"), put("/b", "1"), put("/c", "1")],
    )
    .await;
    let page = store.list(&"/".into(), None, 1).await.unwrap();
    apply(&store, vec![], vec![Op::Del("/c".into())]).await;
    let state = store.shared.column_family(STATE);
    store
        .shared
        .db
        .put_cf(state, "/b", "\x02not a row")
        .unwrap();
    let is_fatal =
        |error: ControlError| assert!(matches!(error, ControlError::Fatal(_)), "{error:?}");
    is_fatal(store.get(&"/b".into()).await.unwrap_err());
    is_fatal(store.list(&"/".into(), None, 10).await.unwrap_err());
    is_fatal(
        store
            .list(&"/".into(), page.next.as_ref(), 1)
            .await
            .unwrap_err(),
    );
    let txn = Txn {
        then: vec![put("/d", "1"), put("/b", "2")],
        ..Txn::default()
    };
    is_fatal(store.txn(txn).await.unwrap_err());
    assert_eq!(read(&store, "/a").await.unwrap().value, "1");
    assert_eq!(rev_of(&store).await, 2, "nothing was done");
}
