//! The embedded store against the promises of its ports, and its own: crashes, damage, a full disk. It never sleeps to wait.
#![allow(clippy::unwrap_used, reason = "the functions that tests share are tests too")]

mod store {
    mod conformance;
    mod crash;
    mod cut;
    mod damage;
    mod disk;
    mod group;
    mod keep;
    mod many;
    mod world;
}
