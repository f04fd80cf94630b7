//! What goes along with a request of the OCI command line beside its message: keys of ttrpc's
//! metadata. containerd sends none of them.

/// With `Wait`: the caller stands for the process on the host. When it goes away before the process
/// has ended, the process is killed and deleted, and with the last container the sandbox ends. The
/// answer tells, too, whether memory was wanting ([`crate::stand_in::is_out_of_memory`]).
pub const STAND_IN: &str = "kata-stand-in";

/// With `Create`: the path of the network namespace that the caller has made for the container,
/// since the spec asks for a new one.
pub const NETWORK_NAMESPACE: &str = "kata-network-namespace";

/// With `Create`: the caller runs those of the spec's hooks that belong to the host.
pub const HOOKS_ARE_RUN: &str = "kata-hooks-are-run";
