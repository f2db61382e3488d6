//! The embedded store against the promises of its ports, and its own: crashes, damage, a full disk. It never sleeps to wait.

mod store {
    mod conformance;
    mod crash;
    mod damage;
    mod disk;
    mod group;
    mod keep;
    mod many;
    mod world;
}
