//! Reads and writes the fields that values, records and headers are made of. Little-endian, each read checked.
//!
//! What is decoded comes from a disk: it is refused if it does not fit, and never panics.

use crate::error::FsError;
use crate::types::Time;

/// Version byte of every value written today.
pub(crate) const VERSION: u8 = 1;

/// Reads little-endian fields off a slice; every read is checked.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FsError> {
        if self.rest.len() < len {
            return Err(FsError::Corrupt(format!("{}: too short", self.what)));
        }
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FsError> {
        Ok(self.bytes(N)?.try_into().expect("bytes() returned N bytes"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FsError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FsError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FsError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FsError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn time(&mut self) -> Result<Time, FsError> {
        let time = Time {
            secs: i64::from_le_bytes(self.array()?),
            nanos: self.u32()?,
        };
        if time.nanos >= 1_000_000_000 {
            return Err(self.corrupt("nanoseconds out of range"));
        }
        Ok(time)
    }

    pub(crate) fn version(&mut self) -> Result<(), FsError> {
        match self.u8()? {
            VERSION => Ok(()),
            other => Err(self.corrupt(&format!("unknown version {other}"))),
        }
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn end(self) -> Result<(), FsError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.corrupt("trailing bytes"))
        }
    }

    pub(crate) fn corrupt(&self, detail: &str) -> FsError {
        FsError::Corrupt(format!("{}: {detail}", self.what))
    }
}

pub(crate) fn push_time(out: &mut Vec<u8>, time: Time) {
    out.extend_from_slice(&time.secs.to_le_bytes());
    out.extend_from_slice(&time.nanos.to_le_bytes());
}
