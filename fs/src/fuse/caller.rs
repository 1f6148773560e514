//! Who sends a request: what its header says, and what only `/proc` knows.
//!
//! Called by [`fuse`](crate::fuse). The kernel's header has a user, a group and a thread, but neither supplementary groups
//! nor capabilities, and fuser 0.18 reads none of the extensions that would bring them. The caller waits for our answer,
//! so its thread is there to be looked at, unless it lives in a process namespace that we cannot see.

use std::fs;

use fuser::Request;

use crate::types::Caller;

const CAP_FSETID: u32 = 4;
const CAP_SYS_ADMIN: u32 = 21;

/// As the header says. The umask is only told where an inode is made.
pub(super) fn caller(request: &Request) -> Caller {
    with_umask(request, 0)
}

/// The same with the umask of a request that makes an inode.
pub(super) fn with_umask(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        umask: u16::try_from(umask & 0o777).expect("nine bits fit"),
    }
}

/// True if a change of mode may leave setgid on a file of `group`: `in_group_or_capable` of Linux. Who cannot be looked
/// at loses the bit, unless it is root.
pub(super) fn keeps_setgid(request: &Request, group: u32) -> bool {
    if request.gid() == group {
        return true;
    }
    match Status::of(request) {
        Some(status) => status.groups().any(|of| of == group) || status.can(CAP_FSETID),
        None => request.uid() == 0,
    }
}

/// True if the caller is shown the names of `trusted.` attributes.
pub(super) fn sees_trusted(request: &Request) -> bool {
    match Status::of(request) {
        Some(status) => status.can(CAP_SYS_ADMIN),
        None => request.uid() == 0,
    }
}

/// `/proc/PID/status`, see proc_pid_status(5).
struct Status(String);

impl Status {
    fn of(request: &Request) -> Option<Self> {
        match request.pid() {
            0 => None, // in another process namespace
            pid => fs::read_to_string(format!("/proc/{pid}/status"))
                .ok()
                .map(Self),
        }
    }

    fn field(&self, name: &str) -> &str {
        let mut fields = self.0.lines().filter_map(|line| line.split_once(':'));
        fields
            .find(|(field, _)| *field == name)
            .map_or("", |(_, value)| value.trim())
    }

    fn groups(&self) -> impl Iterator<Item = u32> {
        self.field("Groups")
            .split_whitespace()
            .filter_map(|group| group.parse().ok())
    }

    fn can(&self, capability: u32) -> bool {
        u64::from_str_radix(self.field("CapEff"), 16)
            .is_ok_and(|effective| effective & 1 << capability != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_capabilities_are_read_as_proc_writes_them() {
        let text = "Name:\tsh\nGroups:\t4 24 1000 \nCapInh:\t0000000000000000\nCapEff:\t0000000000200010\n";
        let status = Status(text.to_owned());
        assert_eq!(status.groups().collect::<Vec<_>>(), [4, 24, 1000]);
        assert!(status.can(CAP_FSETID) && status.can(CAP_SYS_ADMIN) && !status.can(0));
        let none = Status("Groups:\t \n".to_owned());
        assert_eq!(none.groups().count(), 0);
        assert!(!none.can(CAP_FSETID));
    }
}
