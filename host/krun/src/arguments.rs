//! kata-krun's command line: everything that was decided, rendered. Pure.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use kata_hypervisor::{DiskSpec, HypervisorError, ShareSource, VmSpec};

use crate::{KrunSettings, NAME, kernel_params};

/// The descriptors that the VMM inherits.
#[derive(Debug, Clone)]
pub(crate) struct Inherited {
    /// Takes the guest's console.
    pub(crate) console: RawFd,
    /// Takes one byte when the VM is about to run.
    pub(crate) ready: RawFd,
    /// The taps of the spec's network devices, in their order.
    pub(crate) taps: Vec<RawFd>,
}

/// The arguments after the program's name. `vsock_dir` is where the sockets for the guest's ports
/// appear.
pub(crate) fn of(
    settings: &KrunSettings,
    spec: &VmSpec,
    vsock_dir: &Path,
    inherited: Inherited,
) -> Result<Vec<OsString>, HypervisorError> {
    spec.refuse_hot_plug(NAME)?;
    spec.refuse_more_memory(NAME)?;
    spec.refuse_later_disks(NAME)?;
    spec.refuse_more_vcpus(NAME)?;
    let mut arguments = vec![
        // Nothing reads it but people, who look for the sandbox in a list of processes.
        option("--name", format!("sandbox-{}", spec.sandbox)),
        option("--vcpus", spec.vcpus.to_string()),
        option("--memory", spec.memory_mib.to_string()),
        option("--kernel", &spec.kernel),
        option("--append", kernel_params::command_line(spec)),
        option("--vsock-dir", vsock_dir),
        option("--console-fd", inherited.console.to_string()),
        option("--ready-fd", inherited.ready.to_string()),
        option("--log-level", if spec.debug { "debug" } else { "warn" }),
    ];
    arguments.extend(spec.root.initrd().map(|initrd| option("--initrd", initrd)));
    arguments.extend(spec.root.image().map(|image| option("--image", &image.file)));
    arguments.extend(spec.disks.iter().map(disk));
    for (nic, tap) in spec.nics.iter().zip(inherited.taps) {
        arguments.push(option("--nic", format!("{tap},{},{}", nic.mac, nic.mtu)));
    }
    if spec.network_namespace.is_some() {
        arguments.push("--keep-network".into());
    }
    arguments.extend(settings.ports.iter().map(|port| option("--vsock-port", port.to_string())));
    for share in &spec.shares {
        let ShareSource::Directory(directory) = &share.source else {
            let what = "a file server beside the VMM";
            return Err(HypervisorError::Unsupported { driver: NAME, what });
        };
        let mut value = OsString::from(format!("{}=", share.tag));
        value.push(directory);
        arguments.push(option("--share", value));
    }
    Ok(arguments)
}

fn disk(disk: &DiskSpec) -> OsString {
    let access = if disk.readonly { "ro" } else { "rw" };
    let mut value = OsString::from(format!("{},{access},", disk.id));
    value.push(&disk.path);
    option("--disk", value)
}

fn option(name: &str, value: impl Into<OsString>) -> OsString {
    let mut word = OsString::from(name);
    word.push("=");
    word.push(value.into());
    word
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kata_hypervisor::{GuestImage, GuestRoot, LaterDisks, NicSpec, ShareSpec, Tap};

    use super::*;

    fn spec(source: ShareSource) -> VmSpec {
        VmSpec {
            vcpus: 2,
            kernel_params: vec!["agent.log=info".into()],
            shares: vec![ShareSpec { tag: "kataShared".into(), source }],
            ..VmSpec::bare(
                "web-1",
                "/share/vmlinux",
                GuestRoot::Initrd("/share/initrd".into()),
                "/run/x",
            )
        }
    }

    fn render(source: ShareSource) -> Result<String, HypervisorError> {
        render_spec(&spec(source))
    }

    fn render_spec(spec: &VmSpec) -> Result<String, HypervisorError> {
        let settings = KrunSettings { ports: vec![1024], ..KrunSettings::new("kata-krun".into()) };
        let inherited = Inherited { console: 3, ready: 4, taps: vec![5] };
        let words = of(&settings, spec, Path::new("/run/x/vsock"), inherited)?;
        Ok(words.join(&OsString::from(" ")).into_string().unwrap())
    }

    #[test]
    fn everything_of_the_spec_is_told() {
        let line = render(ShareSource::Directory("/run/x/shared".into())).unwrap();
        for part in [
            "--name=sandbox-web-1 --vcpus=2 --memory=256 --kernel=/share/vmlinux --append=",
            " --initrd=/share/initrd ",
            "--append=console=hvc0 ",
            " quiet agent.log=info --vsock-dir=/run/x/vsock --console-fd=3 --ready-fd=4 ",
            "--vsock-port=1024 --share=kataShared=/run/x/shared",
        ] {
            assert!(line.contains(part), "{part} is missing in: {line}");
        }
    }

    #[test]
    fn network_devices_at_boot_are_told_and_later_ones_refused() {
        let plain = spec(ShareSource::Directory("/run/x/shared".into()));
        let nic = NicSpec {
            id: "2".into(),
            mac: "02:42:ac:11:00:02".into(),
            mtu: 9000,
            tap: Tap::Open(Arc::new(std::fs::File::open("/dev/null").unwrap().into())),
            vhost: None,
        };
        let line = render_spec(&VmSpec { nics: vec![nic], ..plain.clone() }).unwrap();
        assert!(line.contains(" --nic=5,02:42:ac:11:00:02,9000 "), "{line}");
        let error = render_spec(&VmSpec { hot_plug: true, ..plain }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the krun driver does not support network devices that come after the boot"
        );
    }

    #[test]
    fn image_is_a_disk_and_the_root() {
        let image = GuestImage {
            file: "/image".into(),
            file_system: "erofs".into(),
            verity: None,
            drivers: None,
        };
        let plain = spec(ShareSource::Directory("/run/x/shared".into()));
        let line = render_spec(&VmSpec { root: GuestRoot::Image(image), ..plain }).unwrap();
        assert!(line.contains(" --image=/image ") && !line.contains("--initrd"), "{line}");
        assert!(line.contains(" rootfstype=erofs ro root=/dev/vda1 agent.log=info "), "{line}");
    }

    #[test]
    fn disks_at_boot_are_told_and_room_for_later_ones_refused() {
        let plain = spec(ShareSource::Directory("/run/x/shared".into()));
        let disk = |id: &str, path: &str, readonly| DiskSpec {
            id: id.into(),
            path: path.into(),
            readonly,
        };
        let disks = vec![disk("root", "/dev/a,b", false), disk("device0", "/file", true)];
        let line = render_spec(&VmSpec { disks, ..plain.clone() }).unwrap();
        assert!(line.contains(" --disk=root,rw,/dev/a,b --disk=device0,ro,/file "), "{line}");
        let later_disks = LaterDisks { readonly: 0, writable: 1 };
        let error = render_spec(&VmSpec { later_disks, ..plain }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the krun driver does not support disks that come after the boot"
        );
    }

    #[test]
    fn network_namespace_of_the_sandbox_is_kept() {
        let plain = spec(ShareSource::Directory("/run/x/shared".into()));
        assert!(!render_spec(&plain).unwrap().contains("--keep-network"));
        let namespace = std::fs::File::open("/proc/self/ns/net").unwrap();
        let network_namespace = Some(Arc::new(namespace.into()));
        let line = render_spec(&VmSpec { network_namespace, ..plain }).unwrap();
        assert!(line.contains(" --keep-network "), "{line}");
    }

    #[test]
    fn file_server_beside_it_is_refused() {
        let error = render(ShareSource::Server("/run/x/fs.sock".into())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the krun driver does not support a file server beside the VMM"
        );
    }
}
