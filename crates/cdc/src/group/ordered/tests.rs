//! Tests of this machine by itself. It never ships.
