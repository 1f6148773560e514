//! Bad disks: flipped bits, files that are cut, emptied or gone, in every kind of file of a store. What is read is true or an
//! error, what is hit is named, nothing panics, and there is a way on. `docs/testing.md` tells how to replay a failure.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is test code: a panic is a failed test"
)]

mod disk;
mod fields;
mod files;
mod layout;
mod mounted;
mod random;
mod repair;
mod store;
mod warnings;
