//! The machine as the VMM is told of it. Pure: a spec in, requests out.

use std::path::{Path, PathBuf};

use kata_hypervisor::{HypervisorError, NicSpec, Tap, VmSpec};

use crate::api::{BootSource, Drive, MachineConfiguration, NetworkInterface, Vsock};
use crate::{FirecrackerSettings, NAME, kernel_params};

/// The guest's address. Every VM has the same: it means something to its own VMM only.
const CID: u32 = 3;

/// Files as the VMM sees them.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    /// The image that the guest boots from, if it does, and the disks of the boot.
    pub(crate) disks: Vec<PathBuf>,
    /// What is in place of disks that come later.
    pub(crate) placeholder: PathBuf,
    /// Where the VMM makes the socket for the guest's ports.
    pub(crate) vsock: PathBuf,
}

/// What makes up a machine, but for its source of random numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    pub(crate) config: MachineConfiguration,
    pub(crate) boot_source: BootSource,
    pub(crate) drives: Vec<Drive>,
    pub(crate) nics: Vec<NetworkInterface>,
    pub(crate) vsock: Vsock,
}

impl Machine {
    /// `drives` are the places of all disks: those of the spec first, and all that are beyond them
    /// for later.
    pub(crate) fn of(
        spec: &VmSpec,
        settings: &FirecrackerSettings,
        drives: Vec<(String, bool)>,
        seen: &Seen,
    ) -> Result<Self, HypervisorError> {
        spec.refuse_hot_plug(NAME)?;
        spec.refuse_more_memory(NAME)?;
        spec.refuse_more_vcpus(NAME)?;
        let lacks = |what| HypervisorError::Unsupported { driver: NAME, what };
        if !spec.shares.is_empty() {
            return Err(lacks("shared directories"));
        }
        let nics = spec.nics.iter().map(|nic| network_interface(nic, settings));
        let drive = |(number, (drive_id, is_read_only))| Drive {
            drive_id,
            path_on_host: file(seen, number).to_owned(),
            // The kernel is told of an image as with any other driver: by its partition.
            is_root_device: false,
            is_read_only,
            rate_limiter: settings.disk.if_any(),
        };
        Ok(Self {
            config: MachineConfiguration { vcpu_count: spec.vcpus, mem_size_mib: spec.memory_mib },
            boot_source: BootSource {
                kernel_image_path: seen.kernel.clone(),
                initrd_path: seen.initrd.clone(),
                boot_args: kernel_params::command_line(spec),
            },
            drives: drives.into_iter().enumerate().map(drive).collect(),
            nics: nics.collect::<Result<_, _>>()?,
            vsock: Vsock { guest_cid: CID, uds_path: seen.vsock.clone() },
        })
    }
}

fn file(seen: &Seen, number: usize) -> &Path {
    seen.disks.get(number).unwrap_or(&seen.placeholder)
}

fn network_interface(
    nic: &NicSpec,
    settings: &FirecrackerSettings,
) -> Result<NetworkInterface, HypervisorError> {
    let Tap::Named(name) = &nic.tap else {
        return Err(HypervisorError::Unsupported { driver: NAME, what: "taps that are open" });
    };
    Ok(NetworkInterface {
        iface_id: format!("nic{}", nic.id),
        host_dev_name: name.clone(),
        guest_mac: nic.mac.clone(),
        rx_rate_limiter: settings.receive.if_any(),
        tx_rate_limiter: settings.send.if_any(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use kata_hypervisor::{DiskSpec, GuestImage, GuestRoot, LaterDisks};

    use super::*;
    use crate::api::{RateLimiter, TokenBucket};
    use crate::disks::Disks;

    pub(crate) fn spec() -> VmSpec {
        VmSpec {
            vcpus: 2,
            kernel_params: vec!["agent.log=debug".into()],
            ..VmSpec::bare(
                "web-1",
                "/share/vmlinux",
                GuestRoot::Initrd("/share/initrd.img".into()),
                "/run/kata/web-1",
            )
        }
    }

    pub(crate) fn image() -> GuestRoot {
        GuestRoot::Image(GuestImage {
            file: "/share/image".into(),
            file_system: "erofs".into(),
            verity: None,
            drivers: None,
        })
    }

    fn seen() -> Seen {
        Seen {
            kernel: "/kernel".into(),
            initrd: Some("/initrd".into()),
            disks: vec!["/rootfs".into()],
            placeholder: "/nothing".into(),
            vsock: "/run/vsock".into(),
        }
    }

    #[test]
    fn machine_is_described_whole() {
        let spec = VmSpec {
            disks: vec![DiskSpec { id: "r".into(), path: "/dev/dm-3".into(), readonly: false }],
            later_disks: LaterDisks { readonly: 1, writable: 0 },
            nics: vec![NicSpec {
                id: "2".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: 1500,
                tap: Tap::Named("tap2_kata".into()),
                vhost: None,
            }],
            ..spec()
        };
        let send =
            RateLimiter { bandwidth: TokenBucket::per_second(1000, 0), ..RateLimiter::default() };
        let settings = FirecrackerSettings { send, ..FirecrackerSettings::default() };
        let machine = Machine::of(&spec, &settings, Disks::of(&spec).drives(), &seen()).unwrap();
        let line = &machine.boot_source.boot_args;
        assert!(line.starts_with("console=ttyS0 panic=-1 "), "{line}");
        assert!(line.ends_with(" quiet agent.log=debug"), "{line}");
        let files: Vec<_> = machine.drives.iter().map(|drive| &drive.path_on_host).collect();
        assert_eq!(files, [Path::new("/rootfs"), Path::new("/nothing")]);
        assert!(!machine.drives[0].is_read_only && machine.drives[1].is_read_only);
        assert_eq!(machine.drives[0].rate_limiter, None);
        let [nic] = &machine.nics[..] else { panic!("{:?}", machine.nics) };
        assert_eq!((nic.host_dev_name.as_str(), nic.rx_rate_limiter), ("tap2_kata", None));
        assert_eq!(nic.tx_rate_limiter.unwrap().bandwidth.unwrap().size, 1000);
    }

    #[test]
    fn what_it_lacks_is_refused() {
        let refused = |spec: VmSpec| {
            let settings = FirecrackerSettings::default();
            Machine::of(&spec, &settings, Vec::new(), &seen()).unwrap_err().to_string()
        };
        let text = refused(VmSpec { hot_plug: true, ..spec() });
        assert!(text.contains("network"), "{text}");
    }

    #[test]
    fn image_is_the_first_disk_and_the_root() {
        let spec = VmSpec { root: image(), ..spec() };
        let seen = Seen { initrd: None, disks: vec!["/files/image".into()], ..seen() };
        let drives = Disks::of(&spec).drives();
        let machine = Machine::of(&spec, &FirecrackerSettings::default(), drives, &seen).unwrap();
        let [drive] = &machine.drives[..] else { panic!("{:?}", machine.drives) };
        assert_eq!(drive.path_on_host, Path::new("/files/image"));
        assert!(drive.is_read_only);
        assert_eq!(machine.boot_source.initrd_path, None);
        let line = &machine.boot_source.boot_args;
        assert!(line.contains(" ro root=/dev/vda1 "), "{line}");
    }
}
