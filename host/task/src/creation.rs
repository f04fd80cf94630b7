//! A container on its way, and what becomes of it when nobody waits for it any more.

use std::sync::Arc;

use kata_sandbox::ProcessKey;
use tokio::task::JoinHandle;

use crate::error::Failure;
use crate::owner::{CreateOrder, Owner};

/// A create request that is being served. It goes on when its caller goes away, for a boot cannot
/// be left half-way; but then nobody has learned of the container, so it is deleted, and the shim
/// ends if that was its last one.
#[derive(Debug)]
pub(crate) struct Creation {
    owner: Arc<Owner>,
    id: String,
    /// `None` once the answer was taken.
    task: Option<JoinHandle<Result<u32, Failure>>>,
}

impl Creation {
    pub(crate) fn begin(owner: Arc<Owner>, order: CreateOrder) -> Self {
        let id = order.req.id.clone();
        let task = tokio::spawn({
            let owner = Arc::clone(&owner);
            async move { owner.create(order).await }
        });
        Self { owner, id, task: Some(task) }
    }

    /// The answer: the pid that stands for the container. An outer error means that the request was
    /// lost.
    pub(crate) async fn finish(mut self) -> Result<Result<u32, Failure>, ttrpc::Error> {
        let task = self.task.as_mut().expect("it is taken out below only");
        let answer = task.await.map_err(|error| Failure::lost(error).into());
        self.task = None;
        answer
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        let Some(task) = self.task.take() else { return };
        let (owner, id) = (Arc::clone(&self.owner), std::mem::take(&mut self.id));
        tracing::warn!(
            "the engine has gone away while container {id} was being created: it is deleted"
        );
        tokio::spawn(async move {
            if let Ok(Ok(_)) = task.await
                && let Err(failure) = owner.delete(&ProcessKey::init(&id)).await
            {
                tracing::error!("container {id} that nobody knows cannot be deleted: {failure}");
            }
            owner.shut_down().await;
        });
    }
}
