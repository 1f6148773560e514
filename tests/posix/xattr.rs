//! Extended attributes: namespaces, sizes, who sees what.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use hafs_tests::requirement;
use rustix::fs::{
    CWD, FileType, Mode, XattrFlags, getxattr, lgetxattr, listxattr, lsetxattr, mknodat,
    removexattr, setxattr,
};
use rustix::io::Errno;

use crate::Mounted;
use crate::user::{as_user, on_hafs_and_ext4};

const SET: XattrFlags = XattrFlags::empty();

fn names(path: &std::path::Path) -> Vec<String> {
    let mut buffer = vec![0; 70_000];
    let len = listxattr(path, &mut buffer).expect("listxattr");
    let names = buffer[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    let mut names: Vec<String> = names
        .map(|name| String::from_utf8_lossy(name).into())
        .collect();
    names.sort();
    names
}

#[test]
fn namespaces_are_those_of_linux() {
    if !requirement::mounts_work("namespaces of extended attributes") {
        return;
    }
    let mounted = Mounted::new();
    for place in on_hafs_and_ext4(&mounted).iter() {
        let at = |name: &str| place.join(name);
        File::create(at("file")).unwrap();
        chown(at("file"), Some(1000), Some(1000)).unwrap();
        symlink("file", at("link")).unwrap();
        fs::create_dir(at("sticky")).unwrap();
        fs::set_permissions(at("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from(0o666), 0).unwrap();
        let set = |on: &str, name: &str| lsetxattr(at(on), name, b"value", SET);
        for name in ["user.a", "trusted.a", "security.a", "security.selinux"] {
            assert_eq!(set("file", name), Ok(()), "{name}");
            let mut value = [0; 10];
            assert_eq!(lgetxattr(at("file"), name, &mut value), Ok(5), "{name}");
        }
        for name in ["system.a", "bogus.a", "user", "a"] {
            assert_eq!(set("file", name), Err(Errno::OPNOTSUPP), "{name}");
            let got = lgetxattr(at("file"), name, &mut [0; 10]);
            assert_eq!(got, Err(Errno::OPNOTSUPP), "{name}");
            assert_eq!(
                removexattr(at("file"), name),
                Err(Errno::OPNOTSUPP),
                "{name}"
            );
        }
        for name in ["user.", "trusted.", "security."] {
            assert_eq!(set("file", name), Err(Errno::INVAL), "{name}");
        }
        for on in ["link", "pipe"] {
            assert_eq!(set(on, "user.a"), Err(Errno::PERM), "{on}");
            assert_eq!(set(on, "trusted.a"), Ok(()), "{on}");
        }
        assert_eq!(
            names(&at("file")),
            ["security.a", "security.selinux", "trusted.a", "user.a"]
        );
        as_user(1000, 1000, &[], || {
            assert_eq!(
                names(&at("file")),
                ["security.a", "security.selinux", "user.a"]
            );
            assert_eq!(set("file", "user.mine"), Ok(()));
            assert_eq!(set("file", "trusted.b"), Err(Errno::PERM));
            assert_eq!(set("file", "security.b"), Err(Errno::PERM));
            assert_eq!(set("sticky", "user.b"), Err(Errno::PERM));
            let trusted = getxattr(at("file"), "trusted.a", &mut [0; 10]);
            assert_eq!(trusted, Err(Errno::NODATA));
        });
    }
    mounted.end();
}

#[test]
fn a_thousand_attributes_and_the_limits() {
    if !requirement::mounts_work("many extended attributes") {
        return;
    }
    let mounted = Mounted::new();
    let path = mounted.mount.join("file");
    File::create(&path).unwrap();
    let name = |number: u32| format!("user.attribute-{number:04}");
    for number in 0..1000 {
        let value = format!("value {number}").repeat(1 + number as usize % 7);
        setxattr(
            &path,
            name(number).as_str(),
            value.as_bytes(),
            XattrFlags::CREATE,
        )
        .unwrap();
    }
    setxattr(&path, "user.long", &vec![3; 65_536], SET).unwrap();
    let listed = names(&path);
    assert_eq!(listed.len(), 1001);
    let mut value = vec![0; 65_536];
    assert_eq!(getxattr(&path, "user.long", &mut value), Ok(65_536));
    assert!(value.iter().all(|&byte| byte == 3));
    assert_eq!(
        getxattr(&path, "user.long", &mut value[..65_535]),
        Err(Errno::RANGE)
    );
    let size: usize = listed.iter().map(|name| name.len() + 1).sum();
    assert_eq!(listxattr(&path, &mut value[..size - 1]), Err(Errno::RANGE));
    assert_eq!(listxattr(&path, &mut value[..size]), Ok(size));
    for number in (0..1000).step_by(2) {
        removexattr(&path, name(number).as_str()).unwrap();
    }
    assert_eq!(names(&path).len(), 501);
    // No list that listxattr(2) could not return: 64 KiB.
    let long = |number: u32| format!("user.{number:0250}");
    let refused = (0..400)
        .map(|number| setxattr(&path, long(number).as_str(), b"", SET))
        .find_map(Result::err);
    assert_eq!(refused, Some(Errno::NOSPC));
    assert!(names(&path).len() > 600);
    removexattr(&path, name(1).as_str()).unwrap();
    mounted.end();
}
