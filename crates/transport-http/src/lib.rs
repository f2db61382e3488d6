#![doc = include_str!("../README.md")]
//!
//! The page above is the crate's README: what it is, and what it never does.
#![allow(clippy::disallowed_methods, reason = "a transport lives in real time")]

pub mod auth;
mod body;
pub mod checkpoint;
pub mod encoding;
mod gate;
pub mod json;
mod multipart;
pub mod object_limit;
mod parameter;
pub mod problem;
mod record;
mod route;
pub mod server;
mod service;

pub use auth::{AuthConfig, Authenticator, TokenConfig};
pub use server::{BindError, HttpConfig, HttpServer, TlsConfig};
pub use service::{ConfigView, LIMITS, MetricsText, NoConfig, Services};
