//! To come: filled with the tests of this machine. It never ships.
