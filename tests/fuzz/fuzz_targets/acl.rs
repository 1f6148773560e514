//! The target `acl` of hafs-fs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hafs_fs::fuzz::attack("acl", bytes));
