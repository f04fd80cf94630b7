//! Letting sockets of the namespace itself hear answers, beside a guest that gets all other
//! traffic.
//!
//! Docker's name server is one that needs it: it asks servers outside over sockets in the
//! container's namespace, at the guest's own address. A filter (tc-bpf(8)) before the one that
//! sends everything to the guest looks for a socket of the namespace that a packet is for:
//!
//! ```text
//!            ┌ IPv4, UDP or TCP, for a socket that the namespace has ──▶ the namespace
//!  eth0 ─────┼ an answer to ARP ──▶ both: who has asked is not written in it
//!            └ anything else ──▶ the guest
//! ```
//!
//! Fragments and IPv6 are the guest's. The filter goes with the ingress qdisc on which it is
//! ([`crate::leave`]).

use std::os::fd::AsRawFd;

use futures::StreamExt;
use kata_linux::bpf::{self, Instruction};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use crate::error::kernel;
use crate::join::{ALL_PROTOCOLS, INGRESS, index_of, tap_name};
use crate::program::{
    ADD, ADD_REGISTER, ALWAYS, AND, Assembler, FRAME, IF_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_WORD,
    RESULT, SHIFT_LEFT, SK_RELEASE, UNLESS_EQUAL,
};
use crate::{Namespace, NetworkError};

/// Before the filter that redirects, which has a priority of the kernel's choice, far behind.
const PRIORITY: u16 = 1;

/// Has the interfaces with these numbers, which [`crate::join`] has joined by filters, give to
/// sockets of the namespace what is for them. An error where the kernel has no such filters
/// (CONFIG_NET_CLS_BPF), and then the guest gets everything, as before.
pub async fn share_with_sockets(
    namespace: &Namespace,
    indexes: &[u32],
) -> Result<(), NetworkError> {
    let indexes = indexes.to_vec();
    let work = move |netlink: Handle| async move {
        for &index in &indexes {
            let tap = index_of(&netlink, &tap_name(index)).await?;
            add_filter(&netlink, index, tap).await?;
        }
        Ok(())
    };
    namespace.enter(work).await
}

async fn add_filter(netlink: &Handle, from: u32, tap: u32) -> Result<(), NetworkError> {
    let what = format!("filter the traffic of interface {from} by a program");
    let loaded = bpf::load(bpf::Kind::Classifier, &program(tap));
    let program = loaded.map_err(|source| NetworkError::Device { action: what.clone(), source })?;
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().unsigned_abs()),
        TcFilterBpfOption::ProgName("kata_own_traffic".to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    let mut filter = TcMessage::with_index(from.cast_signed());
    filter.header.parent = INGRESS.into();
    filter.header.info = TcHandle { major: PRIORITY, minor: ALL_PROTOCOLS }.into();
    filter.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()),
    ];
    add(netlink.clone(), filter).await.map_err(kernel(what))
}

/// rtnetlink has requests for some filters only.
async fn add(mut netlink: Handle, filter: TcMessage) -> Result<(), rtnetlink::Error> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewTrafficFilter(filter));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let mut answers = netlink.request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// What the program answers: the packet goes the way that it was on, to the namespace; or the next
/// filter decides (linux/pkt_cls.h).
const TO_NAMESPACE: i32 = 0;
const TO_NEXT_FILTER: i32 = -1;

/// Protocols of Ethernet and of IP, as in the packet.
const ARP: i32 = u16::to_be(0x0806) as i32;
const IPV4: i32 = u16::to_be(0x0800) as i32;
const TCP: i32 = 6;
const UDP: i32 = 17;

/// An answer, of ARP's operations.
const ARP_REPLY: i32 = u16::to_be(2) as i32;

/// The bits of IPv4's fragment field that only fragments have.
const FRAGMENT: i32 = u16::to_be(0x3fff) as i32;

/// Where Ethernet's header ends, and where ARP's operation is in the frame.
const ETHERNET: i32 = 14;
const ARP_OPERATION: i32 = ETHERNET + 6;

/// The field of `struct __sk_buff` that has the protocol.
const SKB_PROTOCOL: i16 = 16;

/// Places on the stack. IPv4's header of twenty bytes ends with the two addresses; with the ports
/// behind them they are the tuple by which sockets are found (`struct bpf_sock_tuple`).
const IP: i16 = -32;
const ADDRESSES: i16 = IP + 12;
const PORTS: i16 = IP + 20;
const OPERATION: i16 = -8;

/// The kernel's functions for programs, as linux/bpf.h numbers them. None is for programs under the
/// GPL alone.
const CLONE_REDIRECT: i32 = 13;
const SKB_LOAD_BYTES: i32 = 26;
const SK_LOOKUP_TCP: i32 = 84;
const SK_LOOKUP_UDP: i32 = 85;

/// The namespace of the packet's own interface, as an argument of the look-ups.
const OWN_NAMESPACE: i32 = -1;

/// Registers of this program: the packet, numbers of the moment, and the packet's protocol.
const PACKET: u8 = 6;
const NUMBER: u8 = 7;
const PROTOCOL: u8 = 8;

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Arp,
    Tcp,
    Found,
    Next,
}

/// The program for an interface whose guest is at `tap`.
fn program(tap: u32) -> Vec<Instruction> {
    let mut code = Assembler::new();
    code.copy(PACKET, 1);
    code.load(LOAD_WORD, NUMBER, PACKET, SKB_PROTOCOL);
    code.jump(IF_EQUAL, NUMBER, ARP, Label::Arp);
    code.jump(UNLESS_EQUAL, NUMBER, IPV4, Label::Next);
    find_socket(&mut code);
    code.label(Label::Found);
    code.jump(IF_EQUAL, RESULT, 0, Label::Next);
    code.copy(1, RESULT);
    code.call(SK_RELEASE);
    code.answer(TO_NAMESPACE);

    code.label(Label::Arp);
    code.set(2, ARP_OPERATION);
    load_bytes(&mut code, OPERATION, 2);
    code.load(LOAD_HALF, NUMBER, FRAME, OPERATION);
    code.jump(UNLESS_EQUAL, NUMBER, ARP_REPLY, Label::Next);
    code.copy(1, PACKET);
    code.set(2, tap.cast_signed());
    code.set(3, 0);
    code.call(CLONE_REDIRECT);
    code.answer(TO_NAMESPACE);

    code.label(Label::Next);
    code.answer(TO_NEXT_FILTER);
    code.instructions()
}

/// Leaves the socket that an IPv4 packet is for in `RESULT`, or 0.
fn find_socket(code: &mut Assembler<Label>) {
    code.set(2, ETHERNET);
    load_bytes(code, IP, 20);
    code.load(LOAD_HALF, NUMBER, FRAME, IP + 6);
    code.constant(AND, NUMBER, FRAGMENT);
    code.jump(UNLESS_EQUAL, NUMBER, 0, Label::Next);
    // The header's length stands in four bits, in words.
    code.load(LOAD_BYTE, NUMBER, FRAME, IP);
    code.constant(AND, NUMBER, 0xf);
    code.constant(SHIFT_LEFT, NUMBER, 2);
    code.set(2, ETHERNET);
    code.push(ADD_REGISTER, 2 | (NUMBER << 4), 0, 0);
    load_bytes(code, PORTS, 4);
    code.load(LOAD_BYTE, PROTOCOL, FRAME, IP + 9);
    code.copy(1, PACKET);
    code.copy(2, FRAME);
    code.constant(ADD, 2, ADDRESSES.into());
    code.set(3, 12);
    code.set(4, OWN_NAMESPACE);
    code.set(5, 0);
    code.jump(IF_EQUAL, PROTOCOL, TCP, Label::Tcp);
    code.jump(UNLESS_EQUAL, PROTOCOL, UDP, Label::Next);
    code.call(SK_LOOKUP_UDP);
    code.jump(ALWAYS, 0, 0, Label::Found);
    code.label(Label::Tcp);
    code.call(SK_LOOKUP_TCP);
}

/// Copies `length` bytes of the packet to the stack, from the offset that register 2 has. A packet
/// that has none there is the next filter's.
fn load_bytes(code: &mut Assembler<Label>, to: i16, length: i32) {
    code.copy(1, PACKET);
    code.copy(3, FRAME);
    code.constant(ADD, 3, to.into());
    code.set(4, length);
    code.call(SKB_LOAD_BYTES);
    code.jump(UNLESS_EQUAL, RESULT, 0, Label::Next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::tests::check;

    #[test]
    fn every_way_through_the_program_ends_with_an_answer() {
        let program = program(7);
        check(&program);
        assert!(program.iter().any(|one| one.immediate == 7), "the tap is not in it");
    }
}
