//! A port of a pod, as `kubectl port-forward` gets at it: by a WebSocket (RFC 6455) of the
//! engine's, as much of it as the engine speaks.
//!
//! A frame's first byte says which of two channels it is of: the connection itself, or what the
//! engine has to say of it. Each begins with the port's number.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use kata_e2e::Deadline;

use crate::node::Node;

/// Kubernetes' name for such channels.
const PROTOCOL: &str = "v4.channel.k8s.io";

const DATA: u8 = 0;
const ERRORS: u8 = 1;

/// A frame that is whole and binary, or the last one (RFC 6455, section 5.2).
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// The bit of a length that announces a mask, which clients have to have. Ours changes nothing.
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0; 4];

/// Lengths that say that the real one follows, in two bytes or in eight.
const IN_TWO: u8 = 126;
const IN_EIGHT: u8 = 127;

/// A forwarded port.
#[derive(Debug)]
pub struct Forward {
    stream: BufReader<TcpStream>,
}

impl Forward {
    /// Opens what the engine has made ready at `url`, which is in the node's network.
    pub(crate) fn open(node: &Node<'_>, url: &str) -> Result<Self> {
        let (address, path) =
            url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("no URL")?;
        let server: SocketAddr = address.parse().with_context(|| url.to_owned())?;
        let stream = node.containerd().dial(server)?;
        stream.set_read_timeout(Some(Deadline::for_command().remaining()))?;
        write!(
            &stream,
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Origin: http://{address}\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: a2F0YS1jb250YWluZXJzIQ==\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
        )?;
        let mut forward = Self { stream: BufReader::new(stream) };
        let status = forward.line()?;
        ensure!(status.starts_with("HTTP/1.1 101 "), "the engine says: {status}");
        while !forward.line()?.is_empty() {}
        for channel in [DATA, ERRORS] {
            let (first, _port) = forward.frame()?;
            ensure!(first == channel, "channel {first} comes before {channel}");
        }
        Ok(forward)
    }

    /// Sends something short.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let length = u8::try_from(text.len() + 1)?;
        ensure!(length < IN_TWO, "that is too long");
        let mut frame = vec![BINARY, MASKED | length];
        frame.extend(MASK);
        frame.push(DATA);
        frame.extend(text.as_bytes());
        self.stream.get_mut().write_all(&frame).context("the engine does not take it")
    }

    /// Reads a line that the server says. What the engine says instead is an error.
    pub fn says(&mut self) -> Result<String> {
        let mut said = Vec::new();
        while !said.ends_with(b"\n") {
            match self.frame()? {
                (DATA, bytes) => said.extend(bytes),
                (_, bytes) => bail!("the engine says: {}", String::from_utf8_lossy(&bytes)),
            }
        }
        Ok(String::from_utf8(said)?.trim_end().to_owned())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// The next frame that is not empty: its channel and the rest.
    fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            let [kind, length] = self.bytes()?;
            ensure!(kind != CLOSE, "the engine has ended the connection");
            ensure!(kind == BINARY, "a frame of kind {kind:#x}");
            let length = match length {
                IN_TWO => u16::from_be_bytes(self.bytes()?).into(),
                IN_EIGHT => u64::from_be_bytes(self.bytes()?),
                length => length.into(),
            };
            let mut frame = Vec::new();
            self.stream.by_ref().take(length).read_to_end(&mut frame)?;
            if let [channel, rest @ ..] = frame.as_slice()
                && !rest.is_empty()
            {
                return Ok((*channel, rest.to_owned()));
            }
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).context("the engine says nothing")?;
        Ok(bytes)
    }
}
