//! What a source tells people, and what they tell it: its state for whoever asks, and how to go on after a loss. It never goes on after a
//! loss by itself.

use std::sync::Arc;
use std::time::Duration;

use tidegate_core::port::{ChangeSourceError, ChangeSourceStatus, CopyStatus, Durability};

use super::GapAction;
use super::driver::Driver;
use super::error::{Halt, SourceRequestError};
use super::status::{SourceFault, SourceState};
use super::stored::StoredSource;

/// How long a source is asked for its position when somebody says to go on there.
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Driver {
    /// A person says how to go on after a loss.
    pub(crate) async fn acknowledge(&mut self, action: GapAction) -> Result<(), SourceRequestError> {
        let name = || self.spec.name.clone();
        let Some(held) = &self.held else { return Err(SourceRequestError::HeldElsewhere { name: name() }) };
        if held.stored.gap.is_none() {
            return Err(SourceRequestError::NoGap { name: name() });
        }
        let position = match action {
            GapAction::RestartCopy => None,
            GapAction::GoOnFromCurrent => {
                let clock = Arc::clone(&self.core.clock);
                let deadline = clock.now().after(ANSWER_MAX);
                let status = tokio::select! {
                    biased;
                    status = self.source.status() => status,
                    () = clock.sleep_until(deadline) => Err(ChangeSourceError::Unavailable("no answer in time".into())),
                };
                let unavailable = |error: ChangeSourceError| {
                    let problem = Halt::from(error).message();
                    SourceRequestError::Unavailable { name: name(), problem }
                };
                Some(status.map_err(unavailable)?.position.0)
            }
        };
        let change = |next: &mut StoredSource| {
            (next.position, next.state, next.gap) = (position, Vec::new(), None);
        };
        self.write(change, Durability::Fsync).await.map_err(|halt| match halt {
            Halt::Store(error) => SourceRequestError::Store(error),
            halt => {
                let problem = halt.message();
                SourceRequestError::Unavailable { name: self.spec.name.clone(), problem }
            }
        })?;
        tracing::warn!(source = %self.spec.name, ?action, "a person said how to go on after the loss");
        self.shared.live.lock().last_error = None;
        Ok(())
    }

    pub(crate) fn show_told(&self, status: ChangeSourceStatus) {
        {
            let mut live = self.shared.live.lock();
            live.lag_bytes = Some(status.lag_bytes);
            live.copy = Some(status.copy);
        }
        if self.blocked.is_none() {
            self.show_streaming();
        }
        self.shared.measure();
    }

    pub(crate) fn show_streaming(&self) {
        let copying = matches!(self.shared.live.lock().copy, Some(CopyStatus::Running { .. } | CopyStatus::Waiting));
        let state = match (self.machine.lags().is_empty(), copying) {
            (false, _) => SourceState::Spilling,
            (true, true) => SourceState::Copying,
            (true, false) => SourceState::Streaming,
        };
        self.show_state(state);
    }

    pub(crate) fn show_state(&self, state: SourceState) {
        let changed = std::mem::replace(&mut self.shared.live.lock().state, state) != state;
        if changed {
            tracing::info!(source = %self.spec.name, state = state.name(), "the source of changes");
            self.shared.measure();
        }
    }

    pub(crate) fn show_halt(&self, halt: &Halt) {
        let message = halt.message();
        tracing::warn!(source = %self.spec.name, code = halt.code(), error = &*message, "the source does not go on");
        self.show_fault(halt.code(), message);
    }

    pub(crate) fn show_fault(&self, code: &'static str, message: Box<str>) {
        let at = self.core.clock.timestamp();
        self.shared.live.lock().last_error = Some(SourceFault { code, message, at });
    }
}
