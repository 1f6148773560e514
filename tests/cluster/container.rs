//! Volumes in containers: a bind mount made before the volume was mounted and one made after, owners, two volumes.
//!
//! The engine is a private dockerd in the scratch directory, the image is made of the distribution's busybox; nothing is
//! pulled.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hafs_tests::binaries::{checkout, tool};
use hafs_tests::command::run_within;
use hafs_tests::{Daemon, Mount, Ran, Scratch, requirement, run};

/// The first image is put together from packages that are downloaded.
const IMAGE_LIMIT: Duration = Duration::from_secs(300);

/// A private engine with the image `busybox`.
pub(crate) struct Engine {
    scratch: Scratch,
    host: String,
}

impl Engine {
    /// `None`, and a word about `test`, where there is no Docker.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let is_missing = |name: &&str| tool(name).is_none();
        if ["dockerd", "docker"].iter().any(is_missing) {
            requirement::missing(test, "Docker");
            return None;
        }
        let scratch = Scratch::new();
        let started = run(script("docker-engine")
            .arg("start")
            .arg(scratch.join("engine")))
        .ok();
        let engine = Self {
            host: started.stdout.trim().to_owned(),
            scratch,
        };
        let image = run_within(script("container-image").arg("busybox"), IMAGE_LIMIT).ok();
        engine
            .docker(&["import", image.stdout.trim(), "busybox"])
            .ok();
        Some(engine)
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Ran {
        let mut docker = Command::new("docker");
        docker
            .env("DOCKER_HOST", &self.host)
            .env("DOCKER_CONFIG", self.scratch.join("config"))
            .args(arguments);
        run(&mut docker)
    }

    /// A container that lives until it is removed, with these `--mount` values.
    pub(crate) fn container(&self, name: &str, mounts: &[String]) {
        let mut arguments = vec![
            "run",
            "--detach",
            "--init",
            "--network",
            "none",
            "--name",
            name,
        ];
        for mount in mounts {
            arguments.extend(["--mount", mount.as_str()]);
        }
        arguments.extend(["busybox", "sleep", "100000"]);
        self.docker(&arguments).ok();
    }

    pub(crate) fn exec(&self, name: &str, user: &str, script: &str) -> Ran {
        self.docker(&["exec", "--user", user, name, "sh", "-euc", script])
    }

    pub(crate) fn remove(&self, name: &str) {
        self.docker(&["rm", "--force", name]).ok();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let stopped = run(script("docker-engine")
            .arg("stop")
            .arg(self.scratch.join("engine")));
        if !std::thread::panicking() {
            stopped.ok();
        }
    }
}

fn script(name: &str) -> Command {
    Command::new(checkout().join("tools/scripts").join(name))
}

pub(crate) fn bind(source: &Path, target: &str, more: &str) -> String {
    format!(
        "type=bind,source={},target={target}{more}",
        source.display()
    )
}

#[test]
fn volumes_in_containers() {
    if !requirement::mounts_work("volumes in containers") {
        return;
    }
    let Some(engine) = Engine::start("volumes in containers") else {
        return;
    };
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    daemon.create_volume("pg");
    daemon.create_volume("wiki");
    let parent = scratch.dir("srv");
    // Docker shares a bind's later mounts only from a shared mount.
    let shared = Mount::watch(&parent);
    run(Command::new("mount").arg("--bind").args([&parent, &parent])).ok();
    run(Command::new("mount").arg("--make-shared").arg(&parent)).ok();
    let (pg, wiki) = (scratch.dir("srv/pg"), scratch.dir("srv/wiki"));

    // Before: the container starts first, with a bind of the directory above, and sees the mount when it comes.
    engine.container(
        "before",
        &[bind(&parent, "/srv", ",bind-propagation=rslave")],
    );
    engine
        .exec("before", "0", "! grep fuse.hafs /proc/mounts")
        .ok();
    let pg_mount = daemon.mount("pg", &pg);
    let wiki_mount = daemon.mount("wiki", &wiki);
    engine
        .exec(
            "before",
            "0",
            "grep ' /srv/pg fuse.hafs ' /proc/mounts; echo one > /srv/pg/from-before",
        )
        .ok();
    assert_eq!(fs::read_to_string(pg.join("from-before")).unwrap(), "one\n");

    // After: binds of mounts that are there; two volumes in one container.
    engine.container("after", &[bind(&pg, "/data", ""), bind(&wiki, "/wiki", "")]);
    engine.exec("after", "0", "cat /data/from-before; echo two > /wiki/page; cmp /data/from-before /wiki/page && exit 1; sync").ok();
    assert_eq!(fs::read_to_string(wiki.join("page")).unwrap(), "two\n");
    assert!(!pg.join("page").exists());

    owners(&engine, &pg);

    // The bytes are the volume's, not the container's.
    engine.remove("after");
    engine.container("again", &[bind(&pg, "/data", "")]);
    let text = engine
        .exec("again", "0", "cat /data/from-before /data/mine/note")
        .ok()
        .stdout;
    assert_eq!(text, "one\nuser\n");
    engine.remove("again");
    engine.remove("before");
    drop(engine);
    pg_mount.unmount();
    wiki_mount.unmount();
    drop(shared);
    daemon.check("pg");
    daemon.check("wiki");
    daemon.stop();
}

/// User 1000 in a container sees the right owners, and may do what they allow.
fn owners(engine: &Engine, pg: &Path) {
    fs::create_dir(pg.join("mine")).expect("root may do that");
    chown(pg.join("mine"), Some(1000), Some(1000)).expect("root may do that");
    fs::write(pg.join("roots"), "root's").expect("root may do that");
    // `! command` does not end a shell with -e.
    let script = "never() { if \"$@\" 2>/dev/null; then echo \"$* succeeded\"; exit 99; fi; }; id -u; stat -c %u:%g /data/mine /data/roots; \
                  echo user > /data/mine/note; stat -c %u:%g:%a /data/mine/note; \
                  never sh -c 'echo x > /data/roots'; never touch /data/elsewhere; never chown 0 /data/mine/note";
    let seen = engine.exec("after", "1000:1000", script).ok().stdout;
    assert_eq!(seen, "1000\n1000:1000\n0:0\n1000:1000:644\n");
    let note = fs::metadata(pg.join("mine/note")).expect("root may do that");
    assert_eq!((note.uid(), note.gid()), (1000, 1000));
}
