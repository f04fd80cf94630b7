//! A name server that stands for all that are outside.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use crate::netns;

/// Where names are in a DNS message, after its header.
const QUESTION: usize = 12;

/// The kind and the class of a question for IPv4 addresses.
const A_IN: [u8; 4] = [0, 1, 0, 1];

/// A name server that knows one name with one address. It ends when it is dropped.
#[derive(Debug)]
pub struct NameServer {
    socket: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Has it serve at `address` in the network namespace of the name `netns`, which has this
    /// address.
    pub(crate) fn start(
        netns: &str,
        address: Ipv4Addr,
        name: &str,
        its_address: Ipv4Addr,
    ) -> Result<Self> {
        let bound = netns::inside(netns, move || UdpSocket::bind((address, 53)))?;
        let socket = bound.with_context(|| format!("cannot serve names at {address}"))?;
        let server = socket.try_clone().context("cannot copy a socket")?;
        let name = name.to_owned();
        let thread = thread::spawn(move || serve(&server, &name, its_address));
        Ok(Self { socket, thread: Some(thread) })
    }
}

/// Serves until an empty datagram comes.
fn serve(socket: &UdpSocket, name: &str, address: Ipv4Addr) {
    let mut question = [0; 512];
    while let Ok((length @ 1.., asker)) = socket.recv_from(&mut question) {
        if let Some(answer) = answer(&question[..length], name, address) {
            // Who has gone away needs no answer.
            let _ = socket.send_to(&answer, asker);
        }
    }
}

/// The answer to a question: a record for the name that is known, none for its other kinds, and "no
/// such name" (RFC 1035, section 4.1).
fn answer(question: &[u8], name: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    let asked: Vec<u8> = name.split('.').chain([""]).flat_map(label).collect();
    let end = QUESTION + question.get(QUESTION..)?.iter().position(|byte| *byte == 0)? + 1;
    let kind = question.get(end..end + 4)?;
    let is_known = question[QUESTION..end].eq_ignore_ascii_case(&asked);
    let mut answer = question[..end + 4].to_vec();
    // An answer; its code; and how many questions, answers and others there are.
    answer[2] |= 0x80;
    answer[3] = if is_known { 0 } else { 3 };
    let has_record = is_known && *kind == A_IN;
    answer[4..12].copy_from_slice(&[0, 1, 0, has_record.into(), 0, 0, 0, 0]);
    if has_record {
        // The name is that of the question; the record lives for a minute and has four bytes.
        answer.extend([0xc0, 0x0c].into_iter().chain(A_IN).chain([0, 0, 0, 60, 0, 4]));
        answer.extend(address.octets());
    }
    Some(answer)
}

fn label(text: &str) -> impl Iterator<Item = u8> {
    let length = u8::try_from(text.len()).expect("labels of tests are short");
    std::iter::once(length).chain(text.bytes())
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let told = self.socket.local_addr().and_then(|own| self.socket.send_to(&[], own));
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_name_has_its_address_and_no_other_name_has_one() {
        let address = Ipv4Addr::new(203, 0, 113, 7);
        let ask = |name: &str, kind: u8| {
            let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            question.extend(name.split('.').chain([""]).flat_map(label));
            question.extend([0, kind, 0, 1]);
            answer(&question, "www.example.org", address).unwrap()
        };
        let known = ask("WWW.example.org", 1);
        assert!(known.ends_with(&address.octets()) && known[3] == 0 && known[7] == 1);
        let ipv6 = ask("www.example.org", 28);
        assert_eq!((ipv6[3], ipv6[7]), (0, 0));
        assert_eq!(ask("other.example.org", 1)[3], 3);
        assert_eq!(answer(&[0; 12], "a", address), None);
    }
}
