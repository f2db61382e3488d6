//! The native clients of peers that do not speak HTTP, as lanes of the load generator. Only with the feature `peers`.

pub mod nats;
pub mod redis;
