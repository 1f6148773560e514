//! POSIX access control lists: the same commands on a mount and on ext4 say the same, and the kernel enforces them.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use hafs_tests::{requirement, run};
use rustix::fs::{XattrFlags, getxattr, lremovexattr, lsetxattr, setxattr};
use rustix::io::Errno;

use crate::Mounted;
use crate::user::{as_user, on_hafs_and_ext4};

/// As setfacl, chmod, umask and the tools that keep lists are used. Ends with what there is.
const SCRIPT: &str = r#"
umask 027
touch plain; mkdir dir
setfacl -m u:1000:rw,g:50:r plain; stat -c '%a %n' plain
chmod 640 plain; getfacl -cn plain
chmod 606 plain; getfacl -cn plain
setfacl -m m::rwx plain; stat -c '%a %n' plain
setfacl -x u:1000,g:50 plain; getfacl -cn plain; getfattr -d -m - plain
setfacl -b plain; stat -c '%a %n' plain; getfattr -d -m - plain
setfacl -d -m u:1000:rwx,g:50:rx,o::- dir; stat -c '%a %n' dir
touch dir/file; mkdir dir/sub; mkfifo dir/pipe; ln -s file dir/link; mknod dir/null c 1 3
umask 077; touch dir/sub/private; mkdir -m 711 dir/sub/mode; umask 0; touch dir/sub/open
sh -c 'echo x > dir/sub/redirected'
install -m 751 /bin/true dir/installed
cp -a dir copied; mv dir/file moved; ln copied/file hard
setfacl -k copied; touch copied/after
chmod g+s dir/sub; mkdir dir/sub/sgid; stat -c '%a %n' dir/sub/sgid
setfacl -m u:1000:r /dev/null/x 2>/dev/null; echo $?
setfacl -d -m u:1000:r plain 2>&1; echo default of a file $?
setfacl -m u::r,g::r,o::r dir/sub/open; getfattr -d -m - dir/sub/open
find . -printf '%M %p\n' | sort
find . -not -type l | sort | xargs getfacl -n
find . | sort | xargs getfattr -hd -m -
"#;

#[test]
fn access_control_lists_are_those_of_ext4() {
    if !requirement::mounts_work("access control lists") || !has_tools() {
        return;
    }
    let mounted = Mounted::new();
    let mut seen: Option<String> = None;
    for place in on_hafs_and_ext4(&mounted).iter() {
        let said = run(Command::new("sh").args(["-c", SCRIPT]).current_dir(place)).ok();
        assert!(said.stdout.contains("user:1000:rwx"), "{said}");
        let seen = seen.get_or_insert_with(|| said.stdout.clone());
        assert_eq!(*seen, said.stdout, "hafs, then {}", place.display());
    }
    mounted.end();
}

/// Who may do what: the list decides, not the permission bits.
#[test]
fn plain_users_may_what_the_list_says() {
    if !requirement::mounts_work("access control lists of users") || !has_tools() {
        return;
    }
    let mounted = Mounted::new();
    for place in on_hafs_and_ext4(&mounted).iter() {
        let at = |name: &str| place.join(name);
        let script = "echo secret > file; chmod 600 file; setfacl -m u:1000:r,g:50:rw,m::rw file; \
                      mkdir -m 700 dir; setfacl -m u:1000:rwx,d:u:1000:rw,d:m::rwx dir; echo in > dir/inner";
        run(Command::new("sh").args(["-euc", script]).current_dir(place)).ok();
        let may = |uid, gid, groups: &[u32]| {
            as_user(uid, gid, groups, || {
                let write = |path| File::options().write(true).open(path).is_ok();
                [
                    File::open(at("file")).is_ok(),
                    write(at("file")),
                    File::open(at("dir/inner")).is_ok(),
                    write(at("dir/inner")),
                    File::create_new(at(&format!("dir/{uid}-{gid}"))).is_ok(),
                ]
            })
        };
        assert_eq!(
            may(1000, 1000, &[]),
            [true, false, true, true, true],
            "{place:?}"
        );
        assert_eq!(
            may(1001, 50, &[]),
            [true, true, false, false, false],
            "{place:?}"
        );
        assert_eq!(
            may(1001, 1001, &[50]),
            [true, true, false, false, false],
            "{place:?}"
        );
        assert_eq!(may(1002, 1002, &[]), [false; 5], "{place:?}");
        // A changed list, a changed mask and a removed list count at once.
        run(Command::new("sh")
            .args(["-euc", "setfacl -m u:1000:- dir; chmod g-r file"])
            .current_dir(place))
        .ok();
        assert_eq!(may(1000, 1000, &[]), [false; 5], "{place:?}");
        let masked = [false, true, false, false, false];
        assert_eq!(may(1001, 50, &[]), masked, "{place:?}");
        run(Command::new("setfacl")
            .args(["-b", "file"])
            .current_dir(place))
        .ok();
        assert_eq!(may(1001, 50, &[]), [false; 5], "{place:?}");
    }
    mounted.end();
}

/// Setting a list takes setgid away from a file of a group that the caller is not in.
#[test]
fn setgid_stays_only_for_members_of_the_group() {
    if !requirement::mounts_work("setgid and access control lists") {
        return;
    }
    let mounted = Mounted::new();
    for place in on_hafs_and_ext4(&mounted).iter() {
        let after = |uid, gid, groups: &[u32]| {
            let path = place.join(format!("{uid}-{gid}-{groups:?}"));
            File::create_new(&path).unwrap();
            chown(&path, Some(1000), Some(50)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
            as_user_or_root(uid, gid, groups, &|| {
                setxattr(
                    &path,
                    "system.posix_acl_access",
                    &list(6),
                    XattrFlags::empty(),
                )
                .unwrap();
            });
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777
        };
        assert_eq!(after(1000, 50, &[]), 0o2760, "{place:?}");
        assert_eq!(after(1000, 1000, &[7, 50]), 0o2760, "{place:?}");
        assert_eq!(after(1000, 1000, &[]), 0o760, "{place:?}");
        assert_eq!(after(0, 0, &[]), 0o2760, "{place:?}");
    }
    mounted.end();
}

#[test]
fn what_is_no_list_is_refused() {
    if !requirement::mounts_work("errors of access control lists") {
        return;
    }
    let mounted = Mounted::new();
    for place in on_hafs_and_ext4(&mounted).iter() {
        let file = place.join("file");
        fs::write(&file, "x").unwrap();
        fs::create_dir(place.join("dir")).unwrap();
        std::os::unix::fs::symlink("file", place.join("link")).unwrap();
        let set = |path: &Path, kind: &str, value: &[u8]| {
            let name = format!("system.posix_acl_{kind}");
            lsetxattr(path, name.as_str(), value, XattrFlags::empty())
        };
        assert_eq!(set(&file, "access", b"\x02\0\0\0\x01"), Err(Errno::INVAL));
        assert_eq!(set(&file, "access", b"\x01\0\0\0"), Err(Errno::OPNOTSUPP));
        assert_eq!(set(&file, "access", &list(9)), Err(Errno::INVAL));
        assert_eq!(set(&file, "default", &list(6)), Err(Errno::ACCESS));
        assert_eq!(
            set(&place.join("link"), "access", &list(6)),
            Err(Errno::OPNOTSUPP)
        );
        // Removing what is not there is no error, and an empty list is none.
        assert_eq!(lremovexattr(&file, "system.posix_acl_access"), Ok(()));
        assert_eq!(set(&place.join("dir"), "default", &list(6)), Ok(()));
        assert_eq!(set(&place.join("dir"), "default", b"\x02\0\0\0"), Ok(()));
        let none = getxattr(place.join("dir"), "system.posix_acl_default", &mut [0; 100]);
        assert_eq!(none, Err(Errno::NODATA));
        let user = as_user(1000, 1000, &[], || set(&file, "access", &list(6)));
        assert_eq!(user, Err(Errno::PERM));
    }
    mounted.end();
}

fn has_tools() -> bool {
    ["setfacl", "getfacl", "getfattr"]
        .iter()
        .all(|name| requirement::tool_is_there("access control lists", name))
}

/// user::rwx, user:1001:PERM, group::r--, mask::rw-, other::---
fn list(perm: u16) -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (1, 7, u32::MAX),
        (2, perm, 1001),
        (4, 4, u32::MAX),
        (16, 6, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut value = vec![2, 0, 0, 0];
    for (tag, perm, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn as_user_or_root(uid: u32, gid: u32, groups: &[u32], body: &(dyn Fn() + Sync)) {
    if uid == 0 {
        body();
    } else {
        as_user(uid, gid, groups, body);
    }
}
