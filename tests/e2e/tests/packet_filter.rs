//! What networks inside of a guest need of its kernel: the rules that Docker and kube-proxy make,
//! by the host's iptables, which a container finds in place of one of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use kata_e2e::{
    Configuration, Container, Containerd, GuestKernel, Image, Scenario, Spec,
    hypervisor_under_test, only_a_vm,
};
use serde_json::json;

/// What Docker makes for one published port of a container on its bridge.
const DOCKER: &str = "
-t nat -N DOCKER
-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-t nat -A DOCKER -i docker0 -j RETURN
-t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-N DOCKER
-N DOCKER-ISOLATION-STAGE-1
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-USER -j RETURN
-P FORWARD DROP";

/// What kube-proxy makes for a service with two endpoints and client affinity, and the kubelet and
/// network policies for every pod.
const KUBERNETES: &str = "
-t nat -N KUBE-SERVICES
-t nat -N KUBE-SVC-A
-t nat -N KUBE-SEP-1
-t nat -N KUBE-SEP-2
-t nat -N KUBE-MARK-MASQ
-t nat -N KUBE-POSTROUTING
-t nat -A PREROUTING -m comment --comment services -j KUBE-SERVICES
-t nat -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment https -m tcp --dport 443 -j KUBE-SVC-A
-t nat -A KUBE-SVC-A ! -s 10.244.0.0/16 -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-MARK-MASQ
-t nat -A KUBE-SVC-A -m recent --name KUBE-SEP-1 --rcheck --seconds 10800 --reap --mask 255.255.255.255 --rsource -j KUBE-SEP-1
-t nat -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-t nat -A KUBE-SVC-A -j KUBE-SEP-2
-t nat -A KUBE-SEP-1 -p tcp -m recent --name KUBE-SEP-1 --set --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.0.2:6443
-t nat -A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.244.0.3:6443
-t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-t nat -A KUBE-POSTROUTING -m comment --comment snat -j MASQUERADE --random-fully
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p tcp -m multiport --dports 30000:32767 -m connlimit --connlimit-above 100 -j REJECT
-A INPUT -m limit --limit 5/min -j LOG
-A OUTPUT -m owner --uid-owner 7 -j ACCEPT
-A FORWARD -m iprange --src-range 10.244.0.2-10.244.0.9 -j ACCEPT
-t raw -A PREROUTING -m rpfilter --invert -j DROP
-t mangle -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-t raw -A PREROUTING -p udp -m udp --dport 53 -j CT --notrack";

/// One connection that only a translated address lets succeed. The server is there when its first
/// process ends.
const REDIRECTED: &str = "
    iptables -t nat -A OUTPUT -p tcp --dport 7001 -j REDIRECT --to-ports 7000
    /bin/busybox httpd -p 7000 -h /srv
    /bin/busybox wget -q -O - http://127.0.0.1:7001/page";

/// A container with the host's iptables, which is of the kind `kind` (`nft` or `legacy`).
fn container_with_iptables<'a>(containerd: &'a Containerd, kind: &str) -> Result<Container<'a>> {
    let rootfs = containerd.directory().join(format!("rootfs-{kind}"));
    Image::unpack(&rootfs)?;
    for family in ["iptables", "ip6tables"] {
        let script = format!("#!/bin/sh\nexec /usr/sbin/xtables-{kind}-multi {family} \"$@\"\n");
        let file = rootfs.join("bin").join(family);
        fs::write(&file, script)?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
    }
    fs::write(rootfs.join("srv/page"), "translated\n")?;
    let bind = |path: &str| json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"] });
    let capabilities = json!(["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_KILL"]);
    let mut spec = Spec::new(&rootfs, &["sleep", "1000"]);
    for set in ["bounding", "effective", "permitted"] {
        spec = spec.set(&format!("/process/capabilities/{set}"), capabilities.clone());
    }
    // Programs look for their libraries by the old names.
    for path in ["/usr", "/lib", "/lib64"] {
        spec = spec.push("/mounts", bind(path));
    }
    containerd.run(["sleep", "1000"]).spec(spec).start()
}

/// Every rule is taken, in both families where it can be, and a connection is translated.
fn takes_all_rules(container: &Container<'_>) -> Result<()> {
    let said = |script: &str| container.shell(script).output()?.success();
    for rules in [DOCKER, KUBERNETES] {
        let script: String = rules
            .lines()
            .filter(|line| !line.is_empty())
            .map(|rule| format!("iptables {rule} || {{ echo 'iptables {rule}' >&2; exit 1; }}\n"))
            .collect();
        said(&script)?;
    }
    let counted = said("iptables -t nat -S | grep -c MASQUERADE")?;
    assert_eq!(counted, "2\n");
    said(
        "ip6tables -t nat -A POSTROUTING -s fd00::/64 -j MASQUERADE &&
         ip6tables -t raw -A PREROUTING -m rpfilter --invert -j DROP &&
         ip6tables -t nat -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination fd00::2",
    )?;
    assert_eq!(said(REDIRECTED)?, "translated\n");
    Ok(())
}

fn small_kernel_takes_rules_of(kind: &str) -> Result<()> {
    if !only_a_vm("a packet filter of a guest's own") {
        return Ok(());
    }
    let (hypervisor, kernel) = (hypervisor_under_test()?, GuestKernel::Small);
    let configuration = Configuration::with(&format!(
        "[hypervisor.{hypervisor}]\nkernel = \"{}\"\ninitrd = \"{}\"\n",
        kernel.vmlinux().display(),
        kernel.initrd().display()
    ))?;
    Scenario::new().configuration(&configuration.file()).run(|containerd| {
        let container = container_with_iptables(containerd, kind)?;
        takes_all_rules(&container)?;
        container.remove()
    })
}

#[test]
fn small_kernel_takes_the_rules_of_docker_and_kube_proxy() -> Result<()> {
    small_kernel_takes_rules_of("nft")
}

#[test]
fn small_kernel_takes_them_from_iptables_of_the_old_kind() -> Result<()> {
    small_kernel_takes_rules_of("legacy")
}
