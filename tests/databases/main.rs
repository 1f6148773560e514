//! Databases on a real mount, as Debian ships them, under kills of the server and of hafsd.
//!
//! Writers remember every commit that a server acknowledged. Somewhere in the middle the server is killed with SIGKILL, or
//! hafsd, or both at once; then both start again, the server recovers by its own means, and must have every commit
//! (the one under way may have happened or not), find nothing wrong with its files, and `hafsctl volume check` nothing
//! wrong with the volume. Servers run as an ordinary user.

mod ledger;
mod lines;
mod postgres;
mod redis;
mod rounds;
mod server;
mod session;
mod sqlite;
