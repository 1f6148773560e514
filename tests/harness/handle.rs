//! File handles: name_to_handle_at(2) and open_by_handle_at(2).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct file_handle` with room for any.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

#[expect(unsafe_code, reason = "no crate in use has these two calls")]
impl Handle {
    /// That of what `path` leads to; a symbolic link's own.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn of(path: &Path) -> Self {
        let mut handle = Self {
            bytes: 128,
            kind: 0,
            data: [0; 128],
        };
        let (path, mut mount) = (
            CString::new(path.as_os_str().as_bytes()).expect("no NUL"),
            0,
        );
        // SAFETY: the handle says how long it is, path and mount live through the call.
        let result = unsafe {
            let handle = (&raw mut handle).cast();
            libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), handle, &mut mount, 0)
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        handle
    }

    /// Opens it in the mount that `mount` is a file of. Only root may.
    ///
    /// # Errors
    /// ESTALE if there is no such file any more.
    pub fn open(&self, mount: &File, flags: i32) -> io::Result<File> {
        let handle = (&raw const *self).cast_mut().cast();
        // SAFETY: the handle says how long it is, and is only read; the new descriptor has one owner.
        unsafe {
            let fd = libc::open_by_handle_at(mount.as_raw_fd(), handle, flags | libc::O_CLOEXEC);
            if fd < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(File::from_raw_fd(fd))
            }
        }
    }
}
