//! Change streams over a store in memory and a clock that moves only when told to: one test a promise.
#![allow(clippy::unwrap_used, reason = "a test that finds no answer fails")]

#[path = "cdc/durable.rs"]
mod durable;
#[path = "cdc/fault.rs"]
mod fault;
#[path = "cdc/follow.rs"]
mod follow;
#[path = "cdc/group_fault.rs"]
mod group_fault;
#[path = "cdc/group_life.rs"]
mod group_life;
#[path = "cdc/group_ordered.rs"]
mod group_ordered;
#[path = "cdc/group_shared.rs"]
mod group_shared;
#[path = "cdc/group_world.rs"]
mod group_world;
#[path = "cdc/identity.rs"]
mod identity;
#[path = "cdc/late.rs"]
mod late;
#[path = "cdc/producer.rs"]
mod producer;
#[path = "cdc/read.rs"]
mod read;
#[path = "cdc/source.rs"]
mod source;
#[path = "cdc/world.rs"]
mod world;
