//! The target `node_file` of hafs-tools.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hafs_tools::fuzz::attack("node_file", bytes));
