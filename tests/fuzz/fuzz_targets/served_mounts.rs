//! The target `served_mounts` of hafs-tools.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hafs_tools::fuzz::attack("served_mounts", bytes));
