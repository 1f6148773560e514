//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

/// Directory of the programs under test.
const VARIABLE: &str = "HAFS_BIN_DIR";

/// The program `name`: from `$HAFS_BIN_DIR`, or the newest in the target directory that this test was built into. A copy that
/// `make test` left there must not hide what cargo built since.
///
/// # Panics
/// If it is not there: building it is the Makefile's part.
pub fn program(name: &str) -> PathBuf {
    let dirs = match env::var_os(VARIABLE) {
        Some(dir) => vec![PathBuf::from(dir)],
        None => build_dirs(),
    };
    let found = dirs.iter().map(|dir| dir.join(name));
    let built = |path: &PathBuf| path.metadata().and_then(|file| file.modified()).ok();
    let newest = found.filter(|path| path.is_file()).max_by_key(built);
    newest.unwrap_or_else(|| {
        panic!("no program `{name}` in {dirs:?}: build it first, or set {VARIABLE}")
    })
}

/// A tool that hafs does not build, such as pjdfstest: from where tools/scripts/install-packages looks for it, which is hafs's
/// cache, cargo's programs and the search path.
pub fn tool(name: &str) -> Option<PathBuf> {
    let mut dirs: Vec<PathBuf> = cache().map(|cache| cache.join("bin")).into_iter().collect();
    let home = |below: &str| env::var_os("HOME").map(|home| PathBuf::from(home).join(below));
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| home(".cargo"));
    dirs.extend(cargo.map(|cargo| cargo.join("bin")));
    dirs.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// The checkout's root directory.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the checkout")
}

fn cache() -> Option<PathBuf> {
    let dir = |name: &str| env::var_os(name).map(PathBuf::from);
    dir("HAFS_CACHE")
        .or_else(|| dir("XDG_CACHE_HOME").map(|cache| cache.join("hafs")))
        .or_else(|| dir("HOME").map(|home| home.join(".cache/hafs")))
}

fn build_dirs() -> Vec<PathBuf> {
    let test = env::current_exe().expect("the path of this test");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/test");
    let target = profile.parent().expect("target");
    vec![
        target.join("failpoints/release"),
        target.join("failpoints"),
        profile.to_owned(),
    ]
}
