//! The socket by which people of the host reach into a guest: one in each sandbox's directory, for
//! root only.
//!
//! A connection begins with one line, a [`GuestRequest`], and is answered with one: `OK\n`, after
//! which it carries what was asked for, or `NO <sentence>\n`, after which it ends. The words are
//! those of hybrid vsock ([`crate::handshake`]) where it has some.
//!
//! ```text
//!   CONNECT 1026\n          a port of the guest, of those that people may reach; bytes in both directions
//!   CONSOLE\n               what the guest has written to its console, as far as it is remembered
//!   CONSOLE FOLLOW\n        the same, and whatever it writes from then on, until its end
//!   RESIZE 24 80\n          rows and columns of the terminals of debug consoles
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::handshake;

/// The socket's name in the sandbox's directory.
pub const GUEST_SOCKET: &str = "guest.sock";

/// The longest request in bytes, its newline included.
pub const MAX_REQUEST: usize = 32;

/// The longest answer in bytes, its newline included.
pub const MAX_ANSWER: usize = 1024;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestRequest {
    /// A stream to this port of the guest.
    Connect(u32),
    /// The guest's console.
    Console {
        /// Go on with what it writes later.
        follow: bool,
    },
    /// Terminals of debug consoles have this size from now on.
    Resize {
        /// In characters.
        rows: u16,
        /// In characters.
        columns: u16,
    },
}

impl GuestRequest {
    /// The line, its newline included.
    #[must_use]
    pub fn line(self) -> String {
        match self {
            Self::Connect(port) => handshake::connect_line(port),
            Self::Console { follow: false } => "CONSOLE\n".to_owned(),
            Self::Console { follow: true } => "CONSOLE FOLLOW\n".to_owned(),
            Self::Resize { rows, columns } => format!("RESIZE {rows} {columns}\n"),
        }
    }

    /// What a line without its newline asks for; `None` if it is no request.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        match line {
            b"CONSOLE" => return Some(Self::Console { follow: false }),
            b"CONSOLE FOLLOW" => return Some(Self::Console { follow: true }),
            _ => {}
        }
        if let Some(size) = line.strip_prefix(b"RESIZE ") {
            let (rows, columns) = str::from_utf8(size).ok()?.split_once(' ')?;
            return Some(Self::Resize { rows: number(rows)?, columns: number(columns)? });
        }
        handshake::parse_connect(line).ok().map(Self::Connect)
    }
}

/// `u16::from_str` also takes a leading `+`.
fn number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The line that grants a request, its newline included.
#[must_use]
pub fn granted() -> &'static str {
    "OK\n"
}

/// The line that refuses a request, its newline included. The sentence is cut where the line would
/// be too long.
#[must_use]
pub fn refused(sentence: &str) -> String {
    let mut line = format!("NO {}", sentence.replace('\n', " "));
    while line.len() >= MAX_ANSWER {
        line.pop();
    }
    line + "\n"
}

/// Whether an answer without its newline grants the request, and if not the sentence; `None` if it
/// is no answer.
#[must_use]
pub fn parse_answer(line: &str) -> Option<Result<(), &str>> {
    if line == "OK" { Some(Ok(())) } else { line.strip_prefix("NO ").map(Err) }
}

/// Makes the socket in `directory`, with mode 0600. There must be none.
pub fn listen(directory: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(short_path(&open(directory)?))?;
    fs::set_permissions(directory.join(GUEST_SOCKET), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to the socket in `directory`.
pub fn connect(directory: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(short_path(&open(directory)?))
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, directory, flags, Mode::empty())?)
}

/// Short enough for a socket's address (unix(7): 108 bytes), whatever the sandbox's id.
fn short_path(directory: &OwnedFd) -> String {
    format!("/proc/self/fd/{}/{GUEST_SOCKET}", directory.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_request_survives_the_round_trip(port: u32, follow: bool, rows: u16, columns: u16) {
            for request in [
                GuestRequest::Connect(port),
                GuestRequest::Console { follow },
                GuestRequest::Resize { rows, columns },
            ] {
                let line = request.line();
                prop_assert!(line.len() <= MAX_REQUEST);
                prop_assert_eq!(GuestRequest::parse(line.trim_end().as_bytes()), Some(request));
            }
        }

        #[test]
        fn no_line_makes_the_parser_panic(line: Vec<u8>) {
            let _ = GuestRequest::parse(&line);
        }

        #[test]
        fn every_sentence_makes_an_answer(sentence: String) {
            let line = refused(&sentence);
            prop_assert!(line.len() <= MAX_ANSWER && line.ends_with('\n'));
            prop_assert!(matches!(parse_answer(line.trim_end_matches('\n')), Some(Err(_))));
        }
    }

    #[test]
    fn malformed_requests_are_none() {
        for line in [
            "",
            "CONSOLE follow",
            "RESIZE",
            "RESIZE 1",
            "RESIZE +1 2",
            "RESIZE 1 70000",
            "CONNECT x",
        ] {
            assert_eq!(GuestRequest::parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse_answer("OK 7"), None);
        assert_eq!(parse_answer("OK"), Some(Ok(())));
    }

    #[test]
    fn socket_works_in_a_directory_with_a_long_name_and_is_its_owners() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("x".repeat(200));
        fs::create_dir(&directory).unwrap();
        let listener = listen(&directory).unwrap();
        let mode = fs::metadata(directory.join(GUEST_SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut client = connect(&directory).unwrap();
        client.write_all(b"hello").unwrap();
        let mut said = [0; 5];
        listener.accept().unwrap().0.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
    }
}
