//! What the kernel offers a FUSE filesystem, found without mounting anything anywhere.
//!
//! `hafsctl doctor` calls [`kernel_offer`] before hafsd ever runs. A superblock is made and attached to no directory: the
//! kernel queues its INIT request, which says what it speaks, and everything goes away with the descriptors.

use std::os::fd::{AsFd as _, AsRawFd as _};

use fuser::InitFlags;
use rustix::mount::FsOpenFlags;

use super::device;
use crate::error::FsError;
use crate::fuse::negotiate;

/// Where INIT's fields lie, after the 40 bytes of every request's header.
const MAJOR_AT: usize = 40;
const MINOR_AT: usize = 44;
const FLAGS_AT: usize = 52;
const FLAGS2_AT: usize = 56;
/// `FUSE_INIT_EXT`: the second half of the flags is there.
const INIT_EXT: u64 = 1 << 30;

/// What a kernel speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOffer {
    /// Version of the protocol: 7.
    pub major: u32,
    /// And its second half.
    pub minor: u32,
    /// Names of capabilities that hafs would use, and this kernel does not offer.
    pub missing: Vec<String>,
}

/// Asks the kernel.
///
/// # Errors
/// [`FsError::Io`] if there is no FUSE, or no permission to mount; [`FsError::Refused`] if the kernel's request is not
/// understood.
pub fn kernel_offer() -> Result<KernelOffer, FsError> {
    let device = device::open()?;
    let failed = |errno: rustix::io::Errno| FsError::Io {
        op: "make a superblock of",
        path: "fuse".to_owned(),
        source: errno.into(),
    };
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    let fd = device.as_raw_fd().to_string();
    for (key, value) in [
        ("fd", fd.as_str()),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ] {
        rustix::mount::fsconfig_set_string(&context, key, value).map_err(failed)?;
    }
    rustix::mount::fsconfig_create(&context).map_err(failed)?;
    parse(&device::read_init(device.as_fd())?)
}

fn parse(init: &[u8]) -> Result<KernelOffer, FsError> {
    let field = |at: usize| {
        let bytes = init.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    };
    let fields = (field(MAJOR_AT), field(MINOR_AT), field(FLAGS_AT));
    let (Some(major), Some(minor), Some(flags)) = fields else {
        return Err(FsError::Refused(
            "the kernel's INIT is too short".to_owned(),
        ));
    };
    let mut flags = u64::from(flags);
    if flags & INIT_EXT != 0 {
        flags |= u64::from(field(FLAGS2_AT).unwrap_or(0)) << 32;
    }
    Ok(KernelOffer {
        major,
        minor,
        missing: negotiate::missing(InitFlags::from_bits_retain(flags)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_init_is_no_offer_and_an_old_one_misses_what_it_misses() {
        assert!(matches!(parse(&[0; 50]), Err(FsError::Refused(_))));
        let mut init = vec![0; 56];
        init[MAJOR_AT] = 7;
        init[MINOR_AT] = 23;
        let offer = parse(&init).unwrap();
        assert_eq!((offer.major, offer.minor), (7, 23));
        assert!(
            offer
                .missing
                .iter()
                .any(|name| name == "FUSE_HANDLE_KILLPRIV_V2"),
            "{offer:?}"
        );
    }
}
