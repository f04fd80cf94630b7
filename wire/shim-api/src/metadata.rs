//! What goes along with a request of the OCI command line beside its message: keys of ttrpc's
//! metadata. containerd sends none of them.

/// With `Wait`: the caller stands for the process on the host. When it goes away before the process
/// has ended, the process is killed and deleted, and with the last container the sandbox ends. The
/// answer tells, too, whether memory was wanting ([`crate::stand_in::is_out_of_memory`]).
pub const STAND_IN: &str = "kata-stand-in";

/// With `Wait` of a container: the caller only watches, and nothing ends when it goes away. The
/// value is how often it knows, in decimal digits, that memory was wanting. There is an answer,
/// too, as soon as it was more often ([`crate::stand_in::times_out_of_memory`]); one before the end
/// has no `exited_at`.
pub const WATCHER: &str = "kata-watcher";

/// With `Create`: the path of the network namespace that the caller has made for the container,
/// since the spec asks for a new one.
pub const NETWORK_NAMESPACE: &str = "kata-network-namespace";

/// With `Create`: the caller runs those of the spec's hooks that belong to the host.
pub const HOOKS_ARE_RUN: &str = "kata-hooks-are-run";

/// With `Create`: the container is alone in its sandbox, whatever its annotations name.
pub const ALONE: &str = "kata-alone";

/// With `Create`: nothing is made, it is only told whether what the spec asks for would be refused.
/// For a caller who runs hooks before.
pub const CHECK_ONLY: &str = "kata-check-only";

/// With `Delete`: whatever the process does. One that runs, or is about to, is killed first.
pub const FORCE: &str = "kata-force";
