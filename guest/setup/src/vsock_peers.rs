//! Whose connections over vsock are taken.

/// The host's address (vsock(7), `VMADDR_CID_HOST`).
const HOST: u32 = 2;

/// The last port of the host to which only a process with `CAP_NET_BIND_SERVICE` in the first user
/// namespace can bind a socket (Linux, net/vmw_vsock/af_vsock.c, `LAST_RESERVED_PORT`).
const LAST_RESERVED_PORT: u32 = 1023;

/// Who may drive this guest. Any user of the host may dial any guest, and a guest with a loopback
/// for vsock its own; only the port that the dialler has bound tells who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VsockPeers {
    /// Everybody: where a hypervisor is between (hybrid vsock) it dials by ports of its own choice,
    /// for whoever may open its socket.
    Any,
    /// The host's privileged processes.
    Privileged,
}

impl VsockPeers {
    /// Whether a connection from this port of this machine is taken.
    #[must_use]
    pub fn admit(self, cid: u32, port: u32) -> bool {
        match self {
            Self::Any => true,
            Self::Privileged => cid == HOST && port <= LAST_RESERVED_PORT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_reserved_ports_are_privileged() {
        let privileged = |cid, port| VsockPeers::Privileged.admit(cid, port);
        assert!(privileged(2, 1) && privileged(2, 1023));
        assert!(!privileged(2, 1024) && !privileged(2, u32::MAX));
        for cid in [0, 1, 3, 77, u32::MAX] {
            assert!(!privileged(cid, 1023), "{cid}");
            assert!(VsockPeers::Any.admit(cid, 4_000_000_000));
        }
    }
}
