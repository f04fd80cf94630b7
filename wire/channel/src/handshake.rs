//! The handshake of hybrid vsock, as a pure codec and as two functions over a stream.
//!
//! Whoever opens a stream writes `CONNECT <port>\n`; whoever accepts it answers `OK <number>\n`, or
//! closes it. The number is the accepting side's own and means nothing to the opener. The words are
//! those of Firecracker's vsock device (its `docs/vsock.md`, "Host-Initiated Connections"); numbers
//! are decimal `u32`.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::ChannelError;

/// The longest line of the handshake in bytes, its newline included: `CONNECT 4294967295\n`.
pub const MAX_LINE: usize = 19;

const CONNECT: &str = "CONNECT ";
const OK: &str = "OK ";

/// Why a line is not a line of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// No newline within [`MAX_LINE`] bytes.
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// Another word than the expected one.
    #[error("the line does not begin with `{expected}`")]
    WrongWord {
        /// The word that should have stood there.
        expected: &'static str,
    },
    /// The rest of the line is not a decimal number below 2³².
    #[error("the line has no port number")]
    BadNumber,
}

/// The line that asks for `port`, newline included.
#[must_use]
pub fn connect_line(port: u32) -> String {
    format!("{CONNECT}{port}\n")
}

/// The line that grants a stream, newline included.
#[must_use]
pub fn ok_line(number: u32) -> String {
    format!("{OK}{number}\n")
}

/// The port that a line without its newline asks for.
pub fn parse_connect(line: &[u8]) -> Result<u32, HandshakeError> {
    parse(line, CONNECT)
}

/// The number in the answer `line`, which comes without its newline.
pub fn parse_ok(line: &[u8]) -> Result<u32, HandshakeError> {
    parse(line, OK)
}

fn parse(line: &[u8], word: &'static str) -> Result<u32, HandshakeError> {
    let number = line
        .strip_prefix(word.as_bytes())
        .ok_or(HandshakeError::WrongWord { expected: word.trim_end() })?;
    // `u32::from_str` also takes a leading `+`, which the protocol does not have.
    if number.first().is_none_or(|byte| !byte.is_ascii_digit()) {
        return Err(HandshakeError::BadNumber);
    }
    str::from_utf8(number).ok().and_then(|text| text.parse().ok()).ok_or(HandshakeError::BadNumber)
}

/// Asks for `port` over a fresh `stream` and resolves when the other side has granted it, however
/// long that takes. Then the stream leads to that port. An end of the stream counts as
/// [`ChannelError::Refused`].
pub async fn open<T: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut T,
    port: u32,
) -> Result<(), ChannelError> {
    let io = |source| ChannelError::Io { port, source };
    stream.write_all(connect_line(port).as_bytes()).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    match read_line(stream).await.map_err(io)? {
        None => Err(ChannelError::Refused { port }),
        Some(line) => line
            .and_then(|line| parse_ok(&line))
            .map(drop)
            .map_err(|source| ChannelError::Handshake { port, source }),
    }
}

/// Reads one line and not a byte more: what follows it belongs to the stream's user. The newline is
/// not part of the result; `None` means that the stream ended first.
pub(crate) async fn read_line(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<Result<Vec<u8>, HandshakeError>>> {
    let mut line = Vec::with_capacity(MAX_LINE);
    loop {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        if byte == *b"\n" {
            return Ok(Some(Ok(line)));
        }
        line.push(byte[0]);
        if line.len() == MAX_LINE {
            return Ok(Some(Err(HandshakeError::TooLong)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn without_newline(line: &str) -> &[u8] {
        line.strip_suffix('\n').unwrap().as_bytes()
    }

    proptest! {
        #[test]
        fn every_port_survives_the_round_trip(port: u32) {
            prop_assert!(connect_line(port).len() <= MAX_LINE);
            prop_assert_eq!(parse_connect(without_newline(&connect_line(port))), Ok(port));
            prop_assert_eq!(parse_ok(without_newline(&ok_line(port))), Ok(port));
        }

        #[test]
        fn no_line_makes_the_parsers_panic(line: Vec<u8>) {
            let _ = parse_connect(&line);
            let _ = parse_ok(&line);
        }
    }

    #[test]
    fn malformed_lines_are_refused() {
        assert_eq!(parse_connect(b"CONNECT "), Err(HandshakeError::BadNumber));
        assert_eq!(parse_connect(b"CONNECT +1"), Err(HandshakeError::BadNumber));
        assert_eq!(parse_connect(b"CONNECT 4294967296"), Err(HandshakeError::BadNumber));
        assert_eq!(parse_connect(b"CONNECT 1 "), Err(HandshakeError::BadNumber));
        assert_eq!(parse_connect(b"OK 1"), Err(HandshakeError::WrongWord { expected: "CONNECT" }));
        assert_eq!(parse_ok(b"ok 1"), Err(HandshakeError::WrongWord { expected: "OK" }));
    }

    #[tokio::test]
    async fn reader_takes_the_line_and_leaves_the_rest() {
        let mut stream: &[u8] = b"OK 7\nrest";
        assert_eq!(read_line(&mut stream).await.unwrap(), Some(Ok(b"OK 7".to_vec())));
        assert_eq!(stream, b"rest");
    }

    #[tokio::test]
    async fn reader_gives_up_on_an_endless_line() {
        let mut stream = tokio::io::repeat(b'x');
        assert_eq!(read_line(&mut stream).await.unwrap(), Some(Err(HandshakeError::TooLong)));
    }
}
