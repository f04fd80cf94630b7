//! The socket by which people of the host reach into the guest ([`kata_channel::guest_socket`]),
//! for as long as the sandbox lives.
//!
//! Nobody gets further than to the ports that the plan has opened. What the guest sends is passed
//! on as it comes: whoever shows it to somebody makes it harmless.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kata_agent_client::ProcessId;
use kata_channel::guest_socket::{self, GuestRequest, MAX_REQUEST};
use kata_channel::{ChannelStream, DEBUG_CONSOLE_PORT};
use kata_log::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Shared;

/// Visitors at a time.
const MAX_VISITORS: usize = 16;

/// The time after a visitor who could not be let in until the next one is.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a visitor may take to say what it wants.
const ASKING: Duration = Duration::from_secs(5);

/// How long the guest may take to take a stream.
const DIALLING: Duration = Duration::from_secs(10);

/// Makes the socket and serves it. A sandbox without one is as good, so that a failure is only
/// told.
pub(super) fn open(shared: &Arc<Shared>) {
    match listener(shared) {
        Ok(listener) => drop(tokio::spawn(serve(Arc::clone(shared), listener))),
        Err(error) => tracing::warn!("sandbox {}: no socket for people: {error}", shared.id),
    }
}

fn listener(shared: &Shared) -> io::Result<UnixListener> {
    let listener = guest_socket::listen(&shared.timing.dir)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn serve(shared: Arc<Shared>, listener: UnixListener) {
    let seats = Arc::new(Semaphore::new(MAX_VISITORS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.until_gone() => return,
        };
        let visitor = match accepted {
            Ok((visitor, _)) => visitor,
            // Too many files are open, or the visitor has gone: the next one may fare better.
            Err(error) => {
                tracing::warn!("sandbox {}: a visitor is not let in: {error}", shared.id);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // The directory's mode keeps others out; this holds whatever is done to it.
        if !visitor.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
            continue;
        }
        let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
            tracing::warn!("sandbox {}: more than {MAX_VISITORS} visitors", shared.id);
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _seat = seat;
            if let Err(error) = receive(&shared, visitor).await {
                tracing::debug!("sandbox {}: a visitor has gone: {error}", shared.id);
            }
        });
    }
}

/// Serves one visitor to its end.
async fn receive(shared: &Shared, mut visitor: UnixStream) -> io::Result<()> {
    let line = timeout(ASKING, read_line(&mut visitor)).await??;
    let Some(request) = GuestRequest::parse(&line) else {
        return refuse(&mut visitor, "this is no request to a guest").await;
    };
    match request {
        GuestRequest::Console { follow } => show_console(shared, &mut visitor, follow).await,
        GuestRequest::Resize { rows, columns } => resize(shared, &mut visitor, rows, columns).await,
        GuestRequest::Connect(port) => match reach(shared, port).await {
            Err(sentence) => refuse(&mut visitor, &sentence).await,
            Ok(mut guest) => {
                grant(&mut visitor).await?;
                tokio::select! {
                    carried = copy_bidirectional(&mut visitor, &mut guest) => carried.map(drop),
                    () = shared.until_gone() => Ok(()),
                }
            }
        },
    }
}

/// A byte at a time: what follows the line is not ours.
async fn read_line(visitor: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(MAX_REQUEST);
    while line.len() < MAX_REQUEST {
        match visitor.read_u8().await? {
            b'\n' => return Ok(line),
            byte => line.push(byte),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the request is too long"))
}

async fn grant(visitor: &mut UnixStream) -> io::Result<()> {
    visitor.write_all(guest_socket::granted().as_bytes()).await
}

async fn refuse(visitor: &mut UnixStream, sentence: &str) -> io::Result<()> {
    visitor.write_all(guest_socket::refused(sentence).as_bytes()).await
}

/// A stream to a port of the guest that is open to people, or why there is none, in a sentence.
async fn reach(shared: &Shared, port: u32) -> Result<ChannelStream, String> {
    let id = &shared.id;
    if !shared.open_ports.contains(&port) {
        return Err(match port {
            DEBUG_CONSOLE_PORT => format!(
                "the debug console of sandbox {id} is off; set `debug_console_enabled = true` in the section agent.kata of the \
                 configuration, and start the sandbox anew"
            ),
            _ => format!("port {port} of the guest is not for people"),
        });
    }
    let why = match timeout(DIALLING, shared.vm.dial(port)).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("it did not answer within {} s", DIALLING.as_secs()),
    };
    Err(match port {
        DEBUG_CONSOLE_PORT => format!(
            "the guest of sandbox {id} has no debug console ({why}); it takes an image with a shell, as \
             `kata-image rootfs --package=bash` makes one"
        ),
        _ => format!("the guest of sandbox {id} cannot be reached on port {port}: {why}"),
    })
}

async fn show_console(shared: &Shared, visitor: &mut UnixStream, follow: bool) -> io::Result<()> {
    grant(visitor).await?;
    let console = shared.vm.console();
    let mut next = 0;
    loop {
        let (text, end) = console.since(next);
        visitor.write_all(&text).await?;
        next = end;
        if !follow {
            return Ok(());
        }
        let mut word = [0];
        tokio::select! {
            () = console.written_beyond(next) => {}
            // What the guest said last is in the ring when its end has been told.
            () = shared.until_gone() => return visitor.write_all(&console.since(next).0).await,
            // A visitor has nothing more to say, so this is its end.
            _ = visitor.read(&mut word) => return Ok(()),
        }
    }
}

/// The agent knows debug consoles by a container without a name. Other agents refuse that, and
/// their consoles keep their size.
async fn resize(
    shared: &Shared,
    visitor: &mut UnixStream,
    rows: u16,
    columns: u16,
) -> io::Result<()> {
    let consoles = ProcessId { container: String::new(), exec: String::new() };
    let resized = shared.agent.tty_win_resize(&consoles, rows.into(), columns.into());
    match shared.unless_gone(resized).await {
        Ok(()) => grant(visitor).await,
        Err(error) => refuse(visitor, &error.to_string()).await,
    }
}
