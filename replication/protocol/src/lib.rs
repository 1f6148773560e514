//! The names that every part of hafs shares: who (nodes, stores, volumes) and when (epochs, sequence numbers).
//!
//! `fs` writes them to disk, `meta` keeps them in the control store, and the replication protocol compares them. The
//! crate holds no clock, no randomness and no IO: ids are made by the caller.
#![no_std]

mod id;

pub use id::{Epoch, Lineage, Lsn, Member, NodeId, PieceId, Pos, StoreId, VolumeId};
