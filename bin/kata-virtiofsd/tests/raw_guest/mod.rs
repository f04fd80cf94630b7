//! A guest that speaks to the file server in raw FUSE requests, as a guest's root could: no guest
//! kernel checks them.
//!
//! It is a vhost-user front end whose guest memory is a memfd. The memory is written and read as a
//! file, so the server's mapping is the only one. Layout: a page-aligned split virtqueue (virtio
//! 1.2 §2.7) per queue, then a request and an answer.

#![expect(unsafe_code, reason = "vmm-sys-util's EventFd lends no BorrowedFd")]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const MEMORY: u64 = 1 << 20;
/// Where the front end claims to have mapped the memory; the server only computes with it.
const USER_BASE: u64 = 0x1000_0000;
const QUEUE_SIZE: u16 = 16;
const QUEUE_STRIDE: u64 = 0x10000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const REQUEST: u64 = 0x40000;
const ANSWER: u64 = 0x80000;
const ANSWER_SIZE: u32 = 0x10000;
/// The queue for ordinary requests; 0 is for urgent ones (virtio 1.2 §5.11.2).
const REQUEST_QUEUE: u64 = 1;
/// VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
const FEATURES: u64 = 1 << 32 | 1 << 30;

/// Linux's include/uapi/linux/fuse.h.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const CREATE: u32 = 35;
}

/// The node id of the share's root.
pub(crate) const ROOT: u64 = 1;

pub(crate) struct RawGuest {
    memory: File,
    kick: EventFd,
    call: EventFd,
    requests: u16,
    _front_end: Frontend,
}

impl RawGuest {
    /// Connects and says hello in FUSE.
    pub(crate) fn connect(socket: &Path) -> Self {
        let memory =
            File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY).unwrap();
        let mut front_end = Frontend::from_stream(UnixStream::connect(socket).unwrap(), 2);
        front_end.set_owner().unwrap();
        assert_eq!(front_end.get_features().unwrap() & FEATURES, FEATURES);
        front_end.set_features(FEATURES).unwrap();
        let protocol_features = front_end.get_protocol_features().unwrap();
        front_end.set_protocol_features(protocol_features).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        front_end.set_mem_table(&[region]).unwrap();
        let events = [0, 1].map(|_| [EventFd::new(0).unwrap(), EventFd::new(0).unwrap()]);
        for (index, [kick, call]) in events.iter().enumerate() {
            let base = USER_BASE + QUEUE_STRIDE * index as u64;
            let ring = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: base,
                avail_ring_addr: base + AVAIL,
                used_ring_addr: base + USED,
                log_addr: None,
            };
            front_end.set_vring_num(index, QUEUE_SIZE).unwrap();
            front_end.set_vring_base(index, 0).unwrap();
            front_end.set_vring_addr(index, &ring).unwrap();
            front_end.set_vring_call(index, call).unwrap();
            front_end.set_vring_kick(index, kick).unwrap();
            front_end.set_vring_enable(index, true).unwrap();
        }
        let [_, [kick, call]] = events;
        let mut guest = Self { memory, kick, call, requests: 0, _front_end: front_end };
        let hello = [7_u32, 38, 0, 0].map(u32::to_le_bytes).concat();
        guest.request(opcode::INIT, 0, &hello).unwrap();
        guest
    }

    /// Sends one request and waits for its answer: what follows the header, or the error number.
    pub(crate) fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let length = 40 + u32::try_from(body.len()).unwrap();
        let mut request = Vec::new();
        request.extend(length.to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(u64::from(self.requests).to_le_bytes());
        request.extend(node.to_le_bytes());
        // User, group and process id 0; no extensions.
        request.extend([0; 16]);
        request.extend(body);
        self.write(REQUEST, &request);
        self.submit(length);

        let mut header = [0; 16];
        self.memory.read_exact_at(&mut header, ANSWER).unwrap();
        let length = u32::from_le_bytes(header[..4].try_into().unwrap());
        let error = i32::from_le_bytes(header[4..8].try_into().unwrap());
        if error != 0 {
            return Err(-error);
        }
        let mut answer = vec![0; length as usize - header.len()];
        self.memory.read_exact_at(&mut answer, ANSWER + header.len() as u64).unwrap();
        Ok(answer)
    }

    /// Looks up one name after the other from the root; the node id at the end.
    pub(crate) fn walk(&mut self, path: &str) -> Result<u64, i32> {
        path.split('/').try_fold(ROOT, |node, name| {
            let entry = self.request(opcode::LOOKUP, node, &c_string(name))?;
            Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
        })
    }

    /// Offers the request and room for its answer, and waits until the server has used them.
    fn submit(&mut self, length: u32) {
        let queue = QUEUE_STRIDE * REQUEST_QUEUE;
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        self.write(queue, &descriptor(REQUEST, length, NEXT, 1));
        self.write(queue + 16, &descriptor(ANSWER, ANSWER_SIZE, WRITE, 0));
        let slot = u64::from(self.requests % QUEUE_SIZE);
        self.write(queue + AVAIL + 4 + 2 * slot, &0_u16.to_le_bytes());
        self.requests += 1;
        self.write(queue + AVAIL + 2, &self.requests.to_le_bytes());
        self.kick.write(1).unwrap();

        let deadline = Timespec { tv_sec: 20, tv_nsec: 0 };
        // SAFETY: the event is open for as long as `self` lives.
        let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let events = poll(&mut [PollFd::new(&call, PollFlags::IN)], Some(&deadline)).unwrap();
        assert_eq!(events, 1, "the server does not answer");
        self.call.read().unwrap();
        let mut used = [0; 2];
        self.memory.read_exact_at(&mut used, queue + USED + 2).unwrap();
        assert_eq!(u16::from_le_bytes(used), self.requests);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// A name as FUSE wants it.
pub(crate) fn c_string(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}
