//! Which groups are in memory: at most so many, the one that was asked least lately goes first. What is not here lies in the
//! store, so forgetting loses nothing but sessions, which begin anew.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use tidegate_core::id::Name;
use tokio::sync::{mpsc, oneshot};

use super::actor::{Actor, Envelope, Link, QUEUE_MAX, undo_of};
use super::command::{Command, Outcome};
use super::error::GroupError;
use super::state::load_main;
use crate::error::StoreError;
use crate::handle::StreamHandle;
use crate::key::Incarnation;
use crate::service::ATTEMPTS_MAX;

/// Groups that are kept in memory at one time.
pub(crate) const ACTORS_MAX: usize = 16_384;

/// The groups that are in memory.
pub(crate) struct Registry {
    actors: Mutex<LruCache<(Incarnation, Name), ActorHandle>>,
}

/// A way to a group's task.
#[derive(Clone)]
pub(crate) struct ActorHandle {
    commands: mpsc::Sender<Envelope>,
    pub(crate) link: Arc<Link>,
}

impl Registry {
    pub(crate) fn new() -> Arc<Self> {
        let bound = NonZeroUsize::new(ACTORS_MAX).expect("not zero");
        Arc::new(Self { actors: Mutex::new(LruCache::new(bound)) })
    }

    /// The group's task if there is one.
    pub(crate) fn find(&self, handle: &StreamHandle, group: &Name) -> Option<ActorHandle> {
        self.actors.lock().get(&(handle.incarnation(), group.clone())).cloned()
    }

    /// The group's task, started where there is none.
    pub(crate) async fn actor(
        self: &Arc<Self>,
        handle: &Arc<StreamHandle>,
        group: &Name,
    ) -> Result<ActorHandle, GroupError> {
        if let Some(actor) = self.find(handle, group) {
            return Ok(actor);
        }
        // A name that no group has must not push a group out.
        if load_main(handle, group).await?.is_none_or(|(main, _)| main.removing) {
            return Err(GroupError::NotFound { name: group.clone() });
        }
        let mut actors = self.actors.lock();
        let key = (handle.incarnation(), group.clone());
        if let Some(actor) = actors.get(&key) {
            return Ok(actor.clone());
        }
        let (commands, receiver) = mpsc::channel(QUEUE_MAX);
        let link = Arc::new(Link::new());
        let actor = Actor::new(Arc::clone(handle), group.clone(), receiver, Arc::clone(&link), Arc::downgrade(self));
        tokio::spawn(actor.run());
        let actor = ActorHandle { commands, link };
        actors.put(key, actor.clone());
        Ok(actor)
    }

    /// Forgets a task that ends, unless another one has taken its place.
    pub(crate) fn remove(&self, handle: &StreamHandle, group: &Name, link: &Arc<Link>) {
        let mut actors = self.actors.lock();
        let key = (handle.incarnation(), group.clone());
        if actors.peek(&key).is_some_and(|actor| Arc::ptr_eq(&actor.link, link)) {
            actors.pop(&key);
        }
    }

    /// Asks a group.
    pub(crate) async fn call(
        self: &Arc<Self>,
        handle: &Arc<StreamHandle>,
        group: &Name,
        command: Command,
    ) -> Result<Outcome, GroupError> {
        for _ in 0..ATTEMPTS_MAX {
            let actor = self.actor(handle, group).await?;
            if let Some(answer) = actor.call(command.clone()).await {
                return match answer? {
                    Outcome::Refused(refusal) => Err(refusal.into_error(&handle.id.stream)),
                    outcome => Ok(outcome),
                };
            }
        }
        Err(StoreError::Contended.into())
    }
}

impl ActorHandle {
    /// Asks the task; `None` where it ended before it took the command.
    async fn call(&self, command: Command) -> Option<Result<Outcome, GroupError>> {
        let (reply, answer) = oneshot::channel();
        let mut pending = Pending { answer: Some(answer), command: command.clone(), actor: self };
        self.commands.send(Envelope { command, reply }).await.ok()?;
        let answer = pending.answer.as_mut()?.await;
        pending.answer = None;
        answer.ok()
    }

    /// Tells the task to look at the store again.
    pub(crate) fn reload(&self) {
        self.link.reload.store(true, std::sync::atomic::Ordering::Release);
        self.nudge();
    }

    /// Has the task look at what time and others did. Where its queue is full it does so anyway.
    fn nudge(&self) {
        let (reply, _) = oneshot::channel();
        let _ = self.commands.try_send(Envelope { command: Command::Tick, reply });
    }
}

/// An answer that is waited for. If the caller goes away, what it would have said is taken back.
struct Pending<'a> {
    answer: Option<oneshot::Receiver<Result<Outcome, GroupError>>>,
    command: Command,
    actor: &'a ActorHandle,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let Some(mut answer) = self.answer.take() else { return };
        // From here on the task sees that nobody listens; what it said before is in the channel.
        answer.close();
        if let Ok(Ok(outcome)) = answer.try_recv()
            && let Some(undo) = undo_of(&self.command, &outcome)
        {
            self.actor.link.undo.lock().push(undo);
            self.actor.nudge();
        }
    }
}
