//! Real namespaces with real interfaces: needs root, ip(8) and tc(8).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use kata_network::{
    Changes, Loopback, Model, Namespace, NetworkError, join, leave, leave_blocking, leave_tap,
    plan, scan, share_with_sockets,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A named namespace with a cable whose other end is in it, too.
struct Netns(String);

impl Netns {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = Self(format!("kata-test-{}-{number}", std::process::id()));
        run("ip", &["netns", "add", &netns.0]);
        netns
    }

    fn wired() -> Self {
        let netns = Self::new();
        netns.ip("link add eth0 mtu 1400 type veth peer name other");
        netns.ip("address add 192.0.2.2/24 dev eth0");
        netns.ip("address add 2001:db8::2/64 dev eth0 nodad");
        netns.ip("link set eth0 up");
        netns.ip("route add default via 192.0.2.1");
        netns.ip("neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        netns
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    fn open(&self) -> Namespace {
        Namespace::open(&self.path()).unwrap()
    }

    fn ip(&self, words: &str) -> String {
        let mut args = vec!["-n", &self.0];
        args.extend(words.split(' '));
        run("ip", &args)
    }

    /// All that tools show of it.
    fn picture(&self) -> String {
        ["-d link", "address", "route", "-6 route"].map(|words| self.ip(words)).concat()
            + &run("tc", &["-n", &self.0, "qdisc"])
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run("ip", &["netns", "delete", &self.0]);
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

async fn joins_and_leaves(model: Model) {
    let netns = Netns::wired();
    let before = netns.picture();
    let namespace = netns.open();
    let plan = plan(&scan(&namespace).await.unwrap()).unwrap();
    let mut nics = join(&namespace, &plan.interfaces, model, false).await.unwrap();
    let nic = nics.pop().unwrap();
    assert_eq!((nic.mtu, nic.mac), (1400, plan.interfaces[0].mac));
    assert!(netns.ip("link").contains(&format!("tap{}_kata", nic.index)));

    // A second time is an error, and takes away what the first one has made: whoever holds it has
    // lost the right to it.
    leave(&namespace, &[nic.index]).await.unwrap();
    assert_eq!(netns.picture(), before);
    leave(&namespace, &[nic.index]).await.unwrap();
}

#[tokio::test]
async fn namespace_is_left_as_it_was_found() {
    joins_and_leaves(Model::TcFilter).await;
}

#[tokio::test]
async fn macvtap_is_taken_away() {
    let probe = Netns::wired();
    let mut command = Command::new("ip");
    command.args(["-n", &probe.0, "link", "add", "link", "eth0", "name", "m", "type", "macvtap"]);
    if command.output().unwrap().status.success() {
        joins_and_leaves(Model::MacVtap).await;
    } else {
        eprintln!("left out: this kernel has no macvtap");
    }
}

#[tokio::test]
async fn everything_of_an_interface_is_read() {
    let netns = Netns::wired();
    let plan = plan(&scan(&netns.open()).await.unwrap()).unwrap();
    let [eth0] = &plan.interfaces[..] else { panic!("{:?}", plan.interfaces) };
    assert_eq!((eth0.name.as_str(), eth0.mtu, eth0.kind.as_str()), ("eth0", 1400, "veth"));
    let addresses: Vec<_> =
        eth0.addresses.iter().map(|one| format!("{}/{}", one.address, one.length)).collect();
    assert_eq!(addresses, ["192.0.2.2/24", "2001:db8::2/64"]);
    let [route] = &plan.routes[..] else { panic!("{:?}", plan.routes) };
    assert_eq!(route.route.gateway.unwrap().to_string(), "192.0.2.1");
    let [(device, neighbour)] = &plan.neighbours[..] else { panic!("{:?}", plan.neighbours) };
    assert_eq!(
        (device.as_str(), neighbour.mac.to_string().as_str()),
        ("eth0", "02:00:00:00:00:09")
    );
}

#[tokio::test]
async fn traffic_of_the_interface_is_the_taps() {
    let netns = Netns::wired();
    let namespace = netns.open();
    let plan = plan(&scan(&namespace).await.unwrap()).unwrap();
    let mut nics = join(&namespace, &plan.interfaces, Model::TcFilter, false).await.unwrap();
    let tap = nics.pop().unwrap().tap;
    // Every frame that is sent at the other end of the cable comes out of the tap, behind a
    // virtio-net header of 10 bytes.
    netns.ip("link set other address 02:00:00:00:00:aa up");
    let mut frame = [0; 2048];
    loop {
        let length = rustix::io::read(&tap, &mut frame).unwrap();
        if length > 22 && frame[16..22] == [2, 0, 0, 0, 0, 0xaa] {
            break;
        }
    }
    leave(&namespace, &[plan.interfaces[0].index]).await.unwrap();
}

/// What a name server needs that serves in a container's namespace: its own questions to the world
/// are answered, and the guest misses nothing.
#[tokio::test]
async fn sockets_of_the_namespace_are_answered_and_the_rest_is_the_taps() {
    let (netns, outside) = (Netns::new(), Netns::new());
    netns.ip(&format!("link add eth0 type veth peer name eth0 netns {}", outside.0));
    for (end, address) in [(&netns, "192.0.2.2/24"), (&outside, "192.0.2.1/24")] {
        end.ip(&format!("address add {address} dev eth0"));
        end.ip("link set eth0 up");
    }
    let before = netns.picture();
    let server = echo_server(&outside);
    let namespace = netns.open();
    let plan = plan(&scan(&namespace).await.unwrap()).unwrap();
    let mut nics = join(&namespace, &plan.interfaces, Model::TcFilter, false).await.unwrap();
    let nic = nics.pop().unwrap();
    share_with_sockets(&namespace, &[nic.index]).await.unwrap();

    let udp = namespace.connect_udp(server).await.unwrap();
    udp.send(b"over UDP").await.unwrap();
    let mut answer = [0; 8];
    udp.recv(&mut answer).await.unwrap();
    assert_eq!(&answer, b"over UDP");
    let mut tcp = namespace.connect_tcp(server).await.unwrap();
    tcp.write_all(b"over TCP").await.unwrap();
    tcp.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"over TCP");

    // The guest has the same address, and the ports that no socket of the namespace has.
    inside(&outside, || {
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"for the guest", "192.0.2.2:9").unwrap();
    });
    let mut heard = Vec::new();
    while !heard.ends_with(b"for the guest") {
        let mut frame = [0; 2048];
        let length = rustix::io::read(&nic.tap, &mut frame).unwrap();
        heard = frame[..length].to_vec();
        assert!(!heard.ends_with(b"over UDP"), "the guest hears what is not its own");
    }
    drop((nic, udp, tcp));
    leave(&namespace, &[plan.interfaces[0].index]).await.unwrap();
    assert_eq!(netns.picture(), before);
}

/// What a guest needs whose servers are looked for in the namespace.
#[tokio::test]
async fn connections_to_localhost_are_taken_but_for_ports_of_others() {
    let netns = Netns::new();
    let namespace = netns.open();
    let connect = async |address: &str| namespace.connect_tcp(address.parse().unwrap()).await;
    netns.ip("link set lo up");
    let before = netns.picture();
    let others = inside(&netns, || {
        ["127.0.0.1:5000", "127.0.0.11:8080"].map(|address| TcpListener::bind(address).unwrap())
    });

    let loopback = Loopback::take(&namespace).await.unwrap();
    for port in [8080, 1, 65535] {
        let mut dialler = connect(&format!("127.0.0.1:{port}")).await.unwrap();
        let (mut taken, dialled) = loopback.accept().await.unwrap();
        assert_eq!(dialled, port);
        taken.write_all(b"hello").await.unwrap();
        drop(taken);
        let mut heard = String::new();
        dialler.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
    }
    for other in others {
        let address = other.local_addr().unwrap();
        let dialler = connect(&address.to_string()).await.unwrap();
        assert_eq!(other.accept().unwrap().1, dialler.local_addr().unwrap());
    }
    let refused = connect("127.0.0.2:8080").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    // Nothing is left of it, as soon as programs that other tests start have closed the descriptors
    // that they begin with.
    drop(loopback);
    let refused = loop {
        if let Err(refused) = connect("127.0.0.1:8080").await {
            break refused;
        }
    };
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(netns.picture(), before);
}

/// One that answers a datagram and a connection, each with what it gets.
fn echo_server(netns: &Netns) -> SocketAddr {
    let address = "192.0.2.1:5300".parse().unwrap();
    let (udp, tcp) = inside(netns, move || {
        (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap())
    });
    thread::spawn(move || {
        let mut buffer = [0; 8];
        let (length, peer) = udp.recv_from(&mut buffer).unwrap();
        udp.send_to(&buffer[..length], peer).unwrap();
        let (mut stream, _) = tcp.accept().unwrap();
        stream.read_exact(&mut buffer).unwrap();
        stream.write_all(&buffer).unwrap();
    });
    address
}

/// Does something on a thread in a namespace.
fn inside<T: Send + 'static>(netns: &Netns, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = netns.path();
    let thread = thread::spawn(move || {
        kata_linux::netns::enter(&path).unwrap();
        work()
    });
    thread.join().unwrap()
}

#[tokio::test]
async fn tap_that_is_left_to_a_name_goes_with_the_network() {
    let netns = Netns::wired();
    let before = netns.picture();
    let namespace = netns.open();
    let plan = plan(&scan(&namespace).await.unwrap()).unwrap();
    let mut nics = join(&namespace, &plan.interfaces, Model::TcFilter, false).await.unwrap();
    let name = leave_tap(nics.pop().unwrap(), 61184).unwrap();
    let shown = netns.ip(&format!("-d link show {name}"));
    assert!(shown.contains("persist on") && shown.contains("user 61184"), "{shown}");
    leave(&namespace, &[plan.interfaces[0].index]).await.unwrap();
    assert_eq!(netns.picture(), before);
}

#[test]
fn what_a_killed_owner_left_is_taken_away_outside_of_a_runtime() {
    let netns = Netns::wired();
    let before = netns.picture();
    let namespace = netns.open();
    let index: u32 = netns.ip("-o link show eth0").split(':').next().unwrap().parse().unwrap();
    run("tc", &["-n", &netns.0, "qdisc", "add", "dev", "eth0", "ingress"]);
    assert_ne!(netns.picture(), before);
    leave_blocking(&namespace, &[index]).unwrap();
    assert_eq!(netns.picture(), before);
    leave_blocking(&namespace, &[index, 4711]).unwrap();
}

#[tokio::test]
async fn interface_with_a_filter_of_somebody_elses_is_refused() {
    let netns = Netns::wired();
    run("tc", &["-n", &netns.0, "qdisc", "add", "dev", "eth0", "clsact"]);
    let error = plan(&scan(&netns.open()).await.unwrap()).unwrap_err();
    assert!(matches!(error, NetworkError::Interface { .. }), "{error}");
}

#[tokio::test]
async fn failure_to_join_leaves_nothing() {
    let netns = Netns::wired();
    let before = netns.picture();
    let namespace = netns.open();
    let mut interfaces = plan(&scan(&namespace).await.unwrap()).unwrap().interfaces;
    let mut missing = interfaces[0].clone();
    missing.index = 4711;
    interfaces.push(missing);
    join(&namespace, &interfaces, Model::TcFilter, false).await.unwrap_err();
    assert_eq!(netns.picture(), before);
}

#[tokio::test]
async fn fresh_namespace_is_empty_and_tells_what_comes() {
    let namespace = Namespace::fresh().unwrap();
    let changes = Changes::of(&namespace).unwrap();
    let snapshot = scan(&namespace).await.unwrap();
    assert!(plan(&snapshot).unwrap().is_empty());
    let netns = Netns::new();
    let target = format!("/proc/{}/fd/{}", std::process::id(), fd_of(&namespace));
    run(
        "nsenter",
        &[&format!("--net={target}"), "ip", "link", "add", "late", "type", "veth", "peer", "x"],
    );
    changes.next().await.unwrap();
    let names: Vec<String> =
        scan(&namespace).await.unwrap().links.into_iter().map(|link| link.interface.name).collect();
    assert!(names.contains(&"late".to_owned()), "{names:?}");
    drop(netns);
}

fn fd_of(namespace: &Namespace) -> i32 {
    use std::os::fd::{AsFd, AsRawFd};
    namespace.as_fd().as_raw_fd()
}
