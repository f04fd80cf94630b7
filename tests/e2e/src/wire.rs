//! A network for containers, made by hand: two network namespaces and cables between them.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::client::{self, Client, Input, Output};
use crate::cni;
use crate::command_line::CommandLine;
use crate::containerd::Containerd;
use crate::deadline::Deadline;
use crate::name_server::NameServer;
use crate::netns::PICTURE;

/// Two namespaces: one for a container, as a CNI plugin would prepare it, and one that stands for
/// the rest of the world. It goes when it is dropped.
///
/// ```text
///   world ── w0 (10.99.0.1/24, fd99::1/64) ════════ eth0 (10.99.0.2/24, fd99::2/64, default routes) ── container
/// ```
#[derive(Debug)]
pub struct Wire {
    world: String,
    container: String,
}

impl Wire {
    /// Both namespaces, with no cable between them.
    pub fn without_cable(containerd: &Containerd) -> Result<Self> {
        Self::without_cable_called(&containerd.unique("n"))
    }

    fn without_cable_called(name: &str) -> Result<Self> {
        let wire = Self { world: format!("w-{name}"), container: format!("c-{name}") };
        for namespace in [&wire.world, &wire.container] {
            ip(&["netns", "add", namespace])?;
            // Without duplicate address detection, which would change what is to be seen after a
            // second or two.
            let settle = "ip link set lo up; for f in all default; do echo 0 > /proc/sys/net/ipv6/conf/$f/accept_dad; done";
            client::run(shell_in(namespace, settle))?.success()?;
        }
        Ok(wire)
    }

    /// With one cable, and what is in the picture.
    pub fn new(containerd: &Containerd) -> Result<Self> {
        Self::without_cable(containerd)?.with_default_routes()
    }

    /// The same for the command line.
    pub fn by_hand(host: &CommandLine) -> Result<Self> {
        Self::without_cable_called(&host.id("n"))?.with_default_routes()
    }

    fn with_default_routes(self) -> Result<Self> {
        let wire = self;
        wire.plug("eth0", 0)?;
        wire.inside("ip route add default via 10.99.0.1 && ip -6 route add default via fd99::1")?;
        Ok(wire)
    }

    /// One more cable: `name` in the container's namespace, and `w{number}` in the world, with
    /// addresses of the networks 10.99.NUMBER.0/24 and fd99:NUMBER::/64.
    pub fn plug(&self, name: &str, number: u8) -> Result<()> {
        let (world, container) = (&self.world, &self.container);
        let other = format!("w{number}");
        ip(&[
            "-n", world, "link", "add", &other, "type", "veth", "peer", name, "netns", container,
        ])?;
        let v6 = if number == 0 { "fd99::".to_owned() } else { format!("fd99:{number}::") };
        for (namespace, device, host) in [(world, other.as_str(), 1), (container, name, 2)] {
            let v4 = format!("10.99.{number}.{host}/24");
            ip(&["-n", namespace, "address", "add", &v4, "dev", device])?;
            let v6 = format!("{v6}{host}/64");
            ip(&["-n", namespace, "address", "add", &v6, "dev", device, "nodad"])?;
            ip(&["-n", namespace, "link", "set", device, "up"])?;
        }
        // Both ends are up, and the kernel takes its time to say so.
        self.inside(&format!("until ip link show {name} | grep -q 'state UP'; do :; done"))
            .map(drop)
    }

    /// The container's namespace, for `ctr run --with-ns`.
    #[must_use]
    pub fn with_ns(&self) -> String {
        format!("network:{}", self.path())
    }

    /// The path of the container's namespace.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.container)
    }

    /// The name of the container's namespace, for ip-netns(8).
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Runs a shell in the world, to its end.
    pub fn world(&self, script: &str) -> Result<String> {
        client::run(shell_in(&self.world, script))?.success().with_context(|| script.to_owned())
    }

    /// Starts a shell in the world.
    pub fn start_in_world(&self, script: &str, input: Input) -> Result<Client> {
        Client::spawn(shell_in(&self.world, script), input)
    }

    /// Runs a shell on the host in the container's namespace, to its end.
    pub fn inside(&self, script: &str) -> Result<String> {
        client::run(shell_in(&self.container, script))?.success().with_context(|| script.to_owned())
    }

    /// A name server on the host in the container's namespace. It knows one name, with one address.
    pub fn name_server(&self, at: Ipv4Addr, name: &str, address: Ipv4Addr) -> Result<NameServer> {
        NameServer::start(&self.container, at, name, address)
    }

    /// Runs `ctr run --rm --cni` with a shell in the world, where the plugin `bridge` makes the
    /// bridge 10.98.0.1. ctr looks for plugins and configuration in places that cannot be changed,
    /// so it is shown others there.
    pub fn ctr_with_cni(&self, containerd: &Containerd, script: &str) -> Result<Output> {
        let scratch = containerd.directory().join("cni");
        cni::write_bridge(&scratch)?;
        let mut args = containerd.shell(script).flag("--cni").command_line()?;
        args.insert(0, containerd.namespace().into());
        args.insert(0, containerd.address().into());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.world, "sh", "-euc", CTR_WITH_CNI]).arg(&scratch);
        command.args(args);
        client::run(command)
    }

    /// Everything that there is to see in the container's namespace, but for counters.
    pub fn picture(&self) -> Result<String> {
        self.inside(PICTURE)
    }

    /// Waits until the container's namespace shows this picture again.
    pub fn becomes(&self, picture: &str) -> Result<()> {
        let deadline = Deadline::for_command();
        loop {
            let now = self.picture()?;
            if now == picture {
                return Ok(());
            }
            ensure!(
                !deadline.remaining().is_zero(),
                "the namespace is not as it was found, {picture}\nbut: {now}"
            );
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in [&self.world, &self.container] {
            // A failed test may have deleted it itself, or never made it.
            let _ = ip(&["netns", "delete", namespace]);
        }
    }
}

/// Arguments: scratch directory, containerd's address and namespace, then those of `ctr run`.
/// ip-netns(8) has made a mount namespace.
const CTR_WITH_CNI: &str = r#"
    mkdir "$0/etc"
    cp -a /etc/. "$0/etc"
    mkdir -p "$0/etc/cni/net.d"
    rm -f "$0"/etc/cni/net.d/*
    cp "$0/bridge.conflist" "$0/etc/cni/net.d/"
    mount --bind "$0/etc" /etc
    mount -t tmpfs none /opt
    mkdir -p /opt/cni/bin
    mount --bind /usr/lib/cni /opt/cni/bin
    address=$1 namespace=$2
    shift 2
    ctr --address "$address" --namespace "$namespace" "$@"
"#;

fn shell_in(namespace: &str, script: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "sh", "-c", script]);
    command
}

fn ip(args: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(args);
    let output: Output = client::run(command)?;
    output.success().map(drop).with_context(|| format!("ip {}", args.join(" ")))
}

/// Whether the host's kernel has the tap on top of an interface that the model `macvtap` needs. If
/// not, says that `what` is left out.
pub fn has_macvtap(what: &str) -> Result<bool> {
    let mut probe = Command::new("unshare");
    probe.args([
        "--net",
        "sh",
        "-c",
        "ip link add name far type veth peer name near && ip link add link near name tap type macvtap",
    ]);
    let has = client::run(probe)?.code == 0;
    if !has {
        eprintln!("left out, for this kernel has no macvtap: {what}");
    }
    let tun = fs::metadata("/dev/net/tun").is_ok();
    ensure!(tun, "there is no /dev/net/tun; load the module tun");
    Ok(has)
}
