//! The target `meta_key` of hafs-meta.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hafs_meta::fuzz::attack("meta_key", bytes));
