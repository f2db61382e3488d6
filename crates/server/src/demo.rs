//! The narrated story on real data: the real server and a real client in one process, over a real socket.

pub mod data;
