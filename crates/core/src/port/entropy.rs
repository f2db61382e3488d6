//! The port to randomness. It never falls back to a weaker kind.

/// Cryptographic randomness.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes` whole or fails. After a failure their content must not be used.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyUnavailable>;
}

/// The system gives no randomness. Nothing was issued; try again when it does.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no randomness, so no token was issued")]
pub struct EntropyUnavailable {
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl EntropyUnavailable {
    /// With what the system said.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: source.into() }
    }
}
