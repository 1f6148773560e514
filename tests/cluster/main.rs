//! Real daemons: killed under load, refused what they must refuse, seen from containers.

mod bulk;
mod container;
mod daemon;
mod docs;
mod doctor;
mod fstab;
mod install;
mod kill;
mod metrics;
mod mount_point;
mod operations;
mod refusal;
mod repair;
mod set;
mod socket;
mod superblock;
mod watch;
mod writer;
