//! Power cuts: hafsd on a disk that loses what was not synced.

mod answers;
mod blocks;
mod cuts;
mod handles;
mod history;
mod lossy;
mod mixed;
mod synced;
mod tree;
mod volume;
mod writer;
