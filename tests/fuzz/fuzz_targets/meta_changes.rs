//! The target `meta_changes` of hafs-meta.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hafs_meta::fuzz::attack("meta_changes", bytes));
