//! Connections to 127.0.0.1 in a namespace, whatever their port: for a guest whose servers whoever
//! is in the namespace expects there.
//!
//! ```text
//!   dialler ──▶ 127.0.0.1:8080 ──▶ the program: TCP, to 127.0.0.1, to no port of theirs ──▶ our socket, from which the owner accepts
//!                                    └ anything else ──▶ who listens there, as without it
//! ```
//!
//! The program (`BPF_PROG_TYPE_SK_LOOKUP`) is asked before the kernel looks for a listening socket,
//! and cannot look itself. So ports on which somebody listens in the namespace already are written
//! into it, and stay theirs; later ones find the guest in their place. Nothing of it outlives the
//! owner's descriptors.

use std::io;
use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kata_linux::bpf::{self, Instruction};
use tokio::net::{TcpListener, TcpStream};

use crate::program::{
    ADD, Assembler, FRAME, IF_EQUAL, LOAD_WORD, RESULT, SK_RELEASE, UNLESS_EQUAL,
};
use crate::{Namespace, NetworkError};

/// Most ports of others: the program compares one after the other.
const MAX_THEIRS: usize = 256;

/// All TCP connections to 127.0.0.1 that anybody in a namespace opens, for as long as this is kept.
#[derive(Debug)]
pub struct Loopback {
    listener: TcpListener,
    _lookup: OwnedFd,
}

impl Loopback {
    /// Takes them. An error where the kernel has no such programs (before 5.9), or where very many
    /// others listen; then nothing has changed. Call it inside of a runtime.
    pub async fn take(namespace: &Namespace) -> Result<Self, NetworkError> {
        let failed = |source| {
            let action = "take connections to 127.0.0.1 in the network namespace".to_owned();
            NetworkError::Device { action, source }
        };
        let own = namespace.clone();
        let taken = namespace.inside(move || listen(&own)).await;
        let (listener, lookup) = taken.map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        Ok(Self { listener, _lookup: lookup })
    }

    /// The next connection, and the port that was dialled.
    pub async fn accept(&self) -> io::Result<(TcpStream, u16)> {
        let (connection, _) = self.listener.accept().await?;
        let port = connection.local_addr()?.port();
        Ok((connection, port))
    }
}

/// In the namespace, on a thread of its own. Our socket's own port, of the kernel's choice, is the
/// guest's as any other.
fn listen(namespace: &Namespace) -> io::Result<(StdTcpListener, OwnedFd)> {
    let theirs = ports_of_others()?;
    let listener = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let map = bpf::map_of_socket(listener.as_fd())?;
    let program = bpf::load(bpf::Kind::SocketLookup, &program(map.as_fd(), &theirs))?;
    let lookup = bpf::attach_to_namespace(namespace.as_fd(), program.as_fd())?;
    Ok((listener, lookup))
}

/// The ports of this thread's namespace on which somebody answers at 127.0.0.1.
fn ports_of_others() -> io::Result<Vec<u16>> {
    let mut ports = listening_ports(&std::fs::read_to_string("/proc/thread-self/net/tcp")?);
    // A kernel without IPv6 has no such file.
    if let Ok(table) = std::fs::read_to_string("/proc/thread-self/net/tcp6") {
        ports.extend(listening_ports(&table));
    }
    ports.sort_unstable();
    ports.dedup();
    if ports.len() > MAX_THEIRS {
        return Err(io::Error::other(format!("others listen on {} ports there", ports.len())));
    }
    Ok(ports)
}

/// The ports of a table of proc_pid_net(5) that take connections to 127.0.0.1.
fn listening_ports(table: &str) -> Vec<u16> {
    /// The state of a socket that listens.
    const LISTENING: &str = "0A";
    /// 127.0.0.1 and any address, each as IPv4, as IPv4 in IPv6, and as IPv6: words of the
    /// machine's order.
    const ADDRESSES: [&str; 4] = [
        "0100007F",
        "00000000",
        "0000000000000000FFFF00000100007F",
        "00000000000000000000000000000000",
    ];
    let port = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let state = words.nth(1)?;
        let listens = state == LISTENING && ADDRESSES.contains(&address);
        listens.then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    table.lines().filter_map(port).collect()
}

/// What is asked about: the fields of `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_ADDRESS: i16 = 40;
const LOCAL_PORT: i16 = 60;

/// What they are to be.
const IPV4: i32 = libc::AF_INET;
const TCP: i32 = libc::IPPROTO_TCP;
const LOCALHOST: i32 = i32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());

/// The kernel's functions for programs, as linux/bpf.h numbers them. None is for programs under the
/// GPL alone.
const MAP_LOOKUP: i32 = 1;
const SK_ASSIGN: i32 = 124;

/// The answer: the socket that was assigned gets it, or else whoever listens.
const PASS: i32 = 1;

/// The map's key on the stack.
const KEY: i16 = -4;

/// Registers of this program: what is asked about, a field of it, and the socket.
const ASKED: u8 = 6;
const FIELD: u8 = 7;
const SOCKET: u8 = 8;

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Pass,
}

fn program(map: BorrowedFd<'_>, theirs: &[u16]) -> Vec<Instruction> {
    let mut code = Assembler::new();
    code.copy(ASKED, 1);
    for (field, value) in [(FAMILY, IPV4), (PROTOCOL, TCP), (LOCAL_ADDRESS, LOCALHOST)] {
        code.load(LOAD_WORD, FIELD, ASKED, field);
        code.jump(UNLESS_EQUAL, FIELD, value, Label::Pass);
    }
    code.load(LOAD_WORD, FIELD, ASKED, LOCAL_PORT);
    for &port in theirs {
        code.jump(IF_EQUAL, FIELD, port.into(), Label::Pass);
    }
    code.store(KEY, bpf::SOCKET_OF_MAP.cast_signed());
    code.load_map(1, map);
    code.copy(2, FRAME);
    code.constant(ADD, 2, KEY.into());
    code.call(MAP_LOOKUP);
    code.jump(IF_EQUAL, RESULT, 0, Label::Pass);
    code.copy(SOCKET, RESULT);
    code.copy(1, ASKED);
    code.copy(2, SOCKET);
    code.set(3, 0);
    code.call(SK_ASSIGN);
    code.copy(1, SOCKET);
    code.call(SK_RELEASE);
    code.label(Label::Pass);
    code.answer(PASS);
    code.instructions()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::program::tests::check;

    /// As the kernel prints them, but for the columns behind the state.
    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0B00007F:A0E5 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0100007F:0050 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4 1
   0: 00000000000000000000000000000000:1388 00000000000000000000000000000000:0000 0A 0:0 0 0 0
   1: 00000000000000000000000001000000:1389 00000000000000000000000000000000:0000 0A 0:0 0 0 0
";

    #[test]
    fn ports_are_those_that_listen_at_the_address() {
        // Docker's name server, a connection, and what is at ::1 alone are none.
        assert_eq!(listening_ports(TABLE), [8080, 22, 5000]);
    }

    proptest! {
        #[test]
        fn no_table_makes_the_reader_panic(table: String) {
            listening_ports(&table);
        }

        #[test]
        fn every_way_through_the_program_ends_with_the_same_answer(theirs in prop::collection::vec(any::<u16>(), 0..MAX_THEIRS)) {
            let map = std::fs::File::open("/dev/null").unwrap();
            let program = program(map.as_fd(), &theirs);
            check(&program);
            let compared = program.iter().filter(|one| one.code == IF_EQUAL).count();
            prop_assert_eq!(compared, theirs.len() + 1);
            prop_assert_eq!(program[program.len() - 2].immediate, PASS);
        }
    }
}
