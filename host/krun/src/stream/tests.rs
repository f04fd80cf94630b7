//! The VMM's side is played by real sockets that close as libkrun's do.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const AGAIN: Duration = Duration::from_millis(1);

/// A stream whose connections come from the queue, and the VMM's ends of them.
fn stream(connections: usize) -> (PatientStream, Vec<UnixStream>) {
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (0..connections).map(|_| UnixStream::pair().unwrap()).unzip();
    let queue = Arc::new(Mutex::new(ours.into_iter()));
    let first = queue.lock().unwrap().next().unwrap();
    let connect: Connect = Box::new(move || {
        let next = queue.lock().unwrap().next();
        Box::pin(async move { next.ok_or_else(|| io::ErrorKind::BrokenPipe.into()) })
    });
    (PatientStream::new(first, connect, AGAIN, Arc::default()), theirs)
}

#[tokio::test]
async fn what_nobody_took_is_told_again() {
    let (mut ours, mut theirs) = stream(3);
    ours.write_all(b"hello ").await.unwrap();
    // Closed with bytes unread, then without a byte sent in between.
    drop(theirs.remove(0));
    drop(theirs.remove(0));
    ours.write_all(b"guest").await.unwrap();
    let mut guest = theirs.remove(0);
    let answer = async {
        let mut heard = [0; 11];
        guest.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello guest");
        guest.write_all(b"host").await.unwrap();
        guest
    };
    let mut back = [0; 4];
    let (guest, read) = tokio::join!(answer, ours.read_exact(&mut back));
    read.unwrap();
    assert_eq!(&back, b"host");
    // From now on an end is an end.
    drop(guest);
    assert_eq!(ours.read(&mut back).await.unwrap(), 0);
}

#[tokio::test]
async fn connection_that_ends_before_a_byte_was_sent_is_made_again() {
    let (mut ours, mut theirs) = stream(2);
    drop(theirs.remove(0));
    let mut guest = theirs.remove(0);
    guest.write_all(b"first").await.unwrap();
    let mut back = [0; 5];
    ours.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"first");
}

#[tokio::test]
async fn guest_that_has_taken_everything_may_end() {
    let (mut ours, mut theirs) = stream(1);
    ours.write_all(b"bye").await.unwrap();
    ours.shutdown().await.unwrap();
    let mut heard = Vec::new();
    theirs[0].read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"bye");
    drop(theirs);
    assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn end_of_writing_is_told_again_too() {
    let (mut ours, mut theirs) = stream(2);
    ours.write_all(b"all").await.unwrap();
    ours.shutdown().await.unwrap();
    drop(theirs.remove(0));
    let mut guest = theirs.remove(0);
    let answer = async {
        let mut heard = Vec::new();
        guest.read_to_end(&mut heard).await.unwrap();
        guest.write_all(&heard).await.unwrap();
    };
    let mut back = [0; 3];
    let (_, read) = tokio::join!(answer, ours.read_exact(&mut back));
    read.unwrap();
    assert_eq!(&back, b"all");
}

#[tokio::test]
async fn no_more_is_kept_than_fits() {
    let (ours, mut theirs) = stream(1);
    let (mut read, mut write) = tokio::io::split(ours);
    let sent = vec![7; KEPT + 1];
    let mut guest = theirs.remove(0);
    let answer = async {
        let mut heard = vec![0; KEPT];
        guest.read_exact(&mut heard).await.unwrap();
        // Only an answer lets the rest through.
        guest.write_all(b"!").await.unwrap();
        guest.read_exact(&mut heard[..1]).await.unwrap();
    };
    let mut back = [0; 1];
    let (_, wrote, read) = tokio::join!(answer, write.write_all(&sent), read.read_exact(&mut back));
    wrote.unwrap();
    read.unwrap();
}
