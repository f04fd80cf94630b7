//! Sends events to containerd, in their order, without anybody waiting for it.
//!
//! ```text
//!   publish ──▶ queue (bounded) ──▶ one task: connect, Forward ──▶ containerd
//!                                     ▲   │ refused or late: again, up to 5 times, ever later
//!                                     └───┘ nobody there: again until somebody is
//! ```
//!
//! One event is on its way at a time, so none overtakes another. A containerd that restarts gets
//! what it missed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use kata_log::chain;
use kata_shim_api::ttrpc::{self, asynchronous::Client, asynchronous::transport::Socket, context};
use kata_shim_api::{Envelope, EventsClient, ForwardRequest, TaskEvent};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// As many events as containerd's own shims hold back.
const QUEUE_LENGTH: usize = 2048;

/// Places that are kept for events that come once. Those that the guest can repeat at will shall
/// not drive an exit out.
const KEPT_FREE: usize = QUEUE_LENGTH / 2;

/// How patient the publisher is.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// What one call may take.
    call: Duration,
    /// How long to wait after the first failure; after the n-th it is n times that.
    step: Duration,
    /// How often an event is sent again to a containerd that is there and does not take it.
    requeues: u32,
}

/// The delay grows no further than to this many steps.
const MOST_STEPS: u32 = 5;

const PATIENCE: Patience =
    Patience { call: Duration::from_secs(5), step: Duration::from_secs(1), requeues: 5 };

/// Sends events of one namespace. Dropping it drops what was not sent; see [`flush`](Self::flush).
#[derive(Debug)]
pub(crate) struct Publisher {
    namespace: String,
    /// `None` if nobody wants events.
    queue: Option<mpsc::Sender<Item>>,
    /// Since the last one that found a place.
    lost: AtomicU64,
}

#[derive(Debug)]
enum Item {
    Event(Box<Envelope>),
    /// Answered when everything before it has been sent or given up.
    Flush(oneshot::Sender<()>),
}

impl Publisher {
    /// Starts the task that sends to `address`: a path, with or without `unix://`, as in
    /// `TTRPC_ADDRESS`. With none or an empty one (CRI-O) events go nowhere, which is not an error.
    /// Nothing is connected before the first event.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn start(namespace: String, address: Option<&str>) -> Self {
        Self::with_patience(namespace, address, PATIENCE)
    }

    fn with_patience(namespace: String, address: Option<&str>, patience: Patience) -> Self {
        let path = address
            .map(|address| address.strip_prefix("unix://").unwrap_or(address))
            .filter(|path| !path.is_empty());
        let queue = path.map(|path| {
            let (queue, items) = mpsc::channel(QUEUE_LENGTH);
            tokio::spawn(Sender { path: path.to_owned(), client: None, patience }.run(items));
            queue
        });
        Self { namespace, queue, lost: AtomicU64::new(0) }
    }

    /// Queues an event, dated now. Never waits: if containerd has taken nothing for so long that
    /// the queue is full, the event is dropped and the log says so.
    pub(crate) fn publish(&self, event: &impl TaskEvent) {
        self.publish_into(event, QUEUE_LENGTH);
    }

    /// The same for an event that the guest can cause as often as it likes: it is dropped when half
    /// of the queue is full.
    pub(crate) fn publish_repeatable(&self, event: &impl TaskEvent) {
        self.publish_into(event, QUEUE_LENGTH - KEPT_FREE);
    }

    /// Queues an event if fewer than `places` are taken.
    fn publish_into(&self, event: &impl TaskEvent, places: usize) {
        let Some(queue) = &self.queue else { return };
        let envelope = event.to_envelope(&self.namespace, SystemTime::now());
        let topic = envelope.topic.clone();
        let taken = QUEUE_LENGTH - queue.capacity();
        if taken < places && queue.try_send(Item::Event(Box::new(envelope))).is_ok() {
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 1 {
                tracing::error!("{lost} events were lost");
            }
        } else if self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            // The first one is told at once, and the others with their number.
            tracing::error!(%topic, "event lost: containerd takes none and {taken} are waiting");
        }
    }

    /// Resolves when every event published so far has been sent or given up, at the latest after
    /// `deadline`.
    pub(crate) async fn flush(&self, deadline: Duration) {
        let Some(queue) = &self.queue else { return };
        let (done, flushed) = oneshot::channel();
        let all_sent = async {
            // An error in either means that the task has ended: nothing more can be sent.
            if queue.send(Item::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        if tokio::time::timeout(deadline, all_sent).await.is_err() {
            tracing::warn!("events lost: containerd did not take them within {deadline:?}");
        }
    }
}

/// The task behind the queue.
struct Sender {
    path: String,
    client: Option<EventsClient>,
    patience: Patience,
}

/// Why an event did not get through.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("cannot connect to containerd")]
    Connect(#[source] std::io::Error),
    #[error("the connection to containerd is lost")]
    Lost(#[source] ttrpc::Error),
    #[error("containerd did not take the event")]
    Refused(#[source] ttrpc::Error),
}

impl Sender {
    async fn run(mut self, mut items: mpsc::Receiver<Item>) {
        while let Some(item) = items.recv().await {
            match item {
                Item::Event(envelope) => {
                    let request = ForwardRequest {
                        envelope: Some(*envelope).into(),
                        ..ForwardRequest::default()
                    };
                    self.deliver(&request).await;
                }
                Item::Flush(done) => {
                    let _ = done.send(());
                }
            }
        }
    }

    async fn deliver(&mut self, request: &ForwardRequest) {
        let mut refusals = 0;
        let mut failures = 0;
        loop {
            let Err(error) = self.forward(request).await else { return };
            failures += 1;
            tracing::warn!(topic = %request.envelope.topic, "event not sent (attempt {failures}): {}", chain(&error));
            match error {
                // It was closed while nothing was sent, by a containerd that has restarted since:
                // no reason to wait.
                SendError::Lost(_) if failures == 1 => continue,
                SendError::Lost(_) | SendError::Connect(_) => {}
                SendError::Refused(_) if refusals == self.patience.requeues => {
                    tracing::error!(topic = %request.envelope.topic, "event given up");
                    return;
                }
                SendError::Refused(_) => refusals += 1,
            }
            tokio::time::sleep(self.patience.step * failures.min(MOST_STEPS)).await;
        }
    }

    async fn forward(&mut self, request: &ForwardRequest) -> Result<(), SendError> {
        let client = match &self.client {
            Some(client) => client,
            None => self.client.insert(connect(&self.path).await.map_err(SendError::Connect)?),
        };
        let begun = Instant::now();
        match client.forward(context::with_duration(self.patience.call), request).await {
            Ok(_) => Ok(()),
            Err(error @ ttrpc::Error::RpcStatus(_)) => Err(SendError::Refused(error)),
            // The client has no kind of its own for a call that took too long.
            Err(error) if begun.elapsed() >= self.patience.call => Err(SendError::Refused(error)),
            Err(error) => {
                self.client = None;
                Err(SendError::Lost(error))
            }
        }
    }
}

/// Connects without blocking the runtime: a containerd whose backlog is full is an error, not a
/// wait.
async fn connect(path: &str) -> std::io::Result<EventsClient> {
    let stream = UnixStream::connect(path).await?;
    Ok(EventsClient::new(Client::new(Socket::new(stream))))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use kata_shim_api::events::{TaskExit, TaskOOM, TaskStart};
    use kata_shim_api::{Events, create_events};
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use ttrpc::asynchronous::{Server, TtrpcContext};

    use super::*;

    const QUICK: Patience =
        Patience { call: Duration::from_secs(5), step: Duration::from_millis(2), requeues: 5 };

    /// A containerd that refuses the first `refusals` events.
    struct Daemon {
        refusals: AtomicU32,
        taken: UnboundedSender<Envelope>,
    }

    #[async_trait::async_trait]
    impl Events for Daemon {
        async fn forward(
            &self,
            _: &TtrpcContext,
            request: ForwardRequest,
        ) -> ttrpc::Result<kata_shim_api::api::Empty> {
            if self
                .refusals
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok()
            {
                return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                    ttrpc::Code::UNAVAILABLE,
                    "busy",
                )));
            }
            self.taken.send(request.envelope.unwrap()).unwrap();
            Ok(kata_shim_api::api::Empty::default())
        }
    }

    async fn daemon(path: &Path, refusals: u32) -> (Server, UnboundedReceiver<Envelope>) {
        let (taken, envelopes) = unbounded_channel();
        let service = create_events(Arc::new(Daemon { refusals: refusals.into(), taken }));
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .unwrap()
            .register_service(service);
        server.start().await.unwrap();
        (server, envelopes)
    }

    fn publisher(path: &Path) -> Publisher {
        Publisher::with_patience("ns".into(), Some(path.to_str().unwrap()), QUICK)
    }

    #[tokio::test]
    async fn events_that_the_guest_repeats_leave_room_for_others() {
        // Nobody is there to take any.
        let dir = tempfile::tempdir().unwrap();
        let publisher = publisher(&dir.path().join("socket"));
        for _ in 0..2 * QUEUE_LENGTH {
            publisher.publish_repeatable(&TaskOOM::default());
        }
        let room = || publisher.queue.as_ref().unwrap().capacity();
        let before = room();
        assert!(before >= KEPT_FREE);
        publisher.publish(&TaskExit::default());
        assert!(room() == before - 1);
    }

    fn start(id: &str) -> TaskStart {
        TaskStart { container_id: id.into(), ..TaskStart::default() }
    }

    /// What `start(id)` looks like when it has arrived.
    fn value(id: &str) -> Vec<u8> {
        start(id).to_any().value
    }

    #[tokio::test]
    async fn events_arrive_in_order_although_containerd_refuses_some() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_server, mut envelopes) = daemon(&path, 3).await;
        let publisher = publisher(&path);
        publisher.publish(&start("c"));
        publisher.publish(&TaskExit::default());
        publisher.flush(Duration::from_secs(10)).await;
        let first = envelopes.try_recv().unwrap();
        assert_eq!((first.namespace.as_str(), first.topic.as_str()), ("ns", "/tasks/start"));
        assert_eq!(first.event.value, value("c"));
        assert_eq!(envelopes.try_recv().unwrap().topic, "/tasks/exit");
    }

    #[tokio::test]
    async fn an_event_that_is_refused_six_times_is_given_up_and_the_next_one_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_server, mut envelopes) = daemon(&path, 6).await;
        let publisher = publisher(&path);
        publisher.publish(&start("lost"));
        publisher.publish(&start("kept"));
        publisher.flush(Duration::from_secs(10)).await;
        assert_eq!(envelopes.try_recv().unwrap().event.value, value("kept"));
        assert!(envelopes.try_recv().is_err());
    }

    #[tokio::test]
    async fn events_wait_for_a_containerd_that_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let publisher = publisher(&path);
        publisher.publish(&start("before"));
        publisher.flush(Duration::from_millis(100)).await;
        let (mut server, mut envelopes) = daemon(&path, 0).await;
        assert_eq!(envelopes.recv().await.unwrap().event.value, value("before"));
        server.shutdown().await.unwrap();
        drop(server);
        std::fs::remove_file(&path).unwrap();
        publisher.publish(&start("between"));
        let (_server, mut envelopes) = daemon(&path, 0).await;
        assert_eq!(envelopes.recv().await.unwrap().event.value, value("between"));
    }

    #[tokio::test]
    async fn without_an_address_events_go_nowhere() {
        for address in [None, Some(""), Some("unix://")] {
            let publisher = Publisher::start("ns".into(), address);
            publisher.publish(&start("c"));
            publisher.flush(Duration::ZERO).await;
            assert!(publisher.queue.is_none());
        }
    }

    #[tokio::test]
    async fn publishing_and_flushing_end_although_nobody_takes_anything() {
        let publisher = publisher(Path::new("/nonexistent/socket"));
        for _ in 0..=QUEUE_LENGTH + 1 {
            publisher.publish(&start("c"));
        }
        publisher.flush(Duration::from_millis(50)).await;
    }
}
