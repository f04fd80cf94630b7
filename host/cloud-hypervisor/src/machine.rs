//! The machine as the VMM is told of it. Pure: a spec in, a configuration out.

use std::path::{Path, PathBuf};

use kata_hypervisor::{
    DiskSpec, GuestImage, HypervisorError, NicSpec, ShareSource, ShareSpec, VmSpec,
};

use crate::api::{
    ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, FsConfig, HotplugMethod, ImageType,
    LandlockConfig, MemoryConfig, NetConfig, PayloadConfig, RngConfig, VmConfig, VsockConfig,
};
use crate::{NAME, kernel_params};

/// The guest's address. Every VM has the same: it means something to its own VMM only.
const CID: u64 = 3;

/// Entries of a file share's queue, as upstream has it.
const SHARE_QUEUE: u32 = 1024;

/// What room for more memory is counted in, in bytes.
const MORE_MEMORY: u64 = 128 << 20;

/// What is decided outside of the spec.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// Where the VMM makes the socket for the guest's ports, as it sees it.
    pub(crate) vsock: PathBuf,
    /// The files of the spec's disks, as it sees them, in their order.
    pub(crate) disks: Vec<PathBuf>,
    /// The file that random numbers come from.
    pub(crate) entropy_source: PathBuf,
    /// Where the files of disks that come later will be, and what the VMM may do there (`r`, `rw`).
    pub(crate) later_disks: Vec<(PathBuf, &'static str)>,
    /// Whether the VMM can shut itself in.
    pub(crate) landlock: bool,
}

/// Queues of a network device: the VMM wants two for a tap.
const NIC_QUEUES: u32 = 2;

/// A network device, whose tap goes with it.
pub(crate) fn nic(nic: &NicSpec) -> NetConfig {
    NetConfig { id: format!("nic{}", nic.id), mac: nic.mac.clone(), num_queues: NIC_QUEUES }
}

/// The configuration of the machine without its network devices: their taps go with requests of
/// their own.
pub(crate) fn config(spec: &VmSpec, around: Surroundings) -> Result<VmConfig, HypervisorError> {
    let fs = spec.shares.iter().enumerate().map(|(number, share)| file_share(number, share));
    let fs = fs.collect::<Result<_, _>>()?;
    // The guest looks for the image by its place.
    let image = spec.root.image().map(image);
    let disks = spec.disks.iter().zip(around.disks).map(|(spec, file)| disk(spec, file));
    Ok(VmConfig {
        cpus: CpusConfig {
            boot_vcpus: spec.vcpus,
            max_vcpus: spec.most_vcpus.unwrap_or(spec.vcpus),
        },
        memory: memory(spec),
        payload: PayloadConfig {
            kernel: spec.kernel.clone(),
            cmdline: kernel_params::command_line(spec),
            initramfs: spec.root.initrd().map(Path::to_path_buf),
        },
        disks: image.into_iter().chain(disks).collect(),
        rng: RngConfig { src: around.entropy_source },
        fs,
        serial: ConsoleConfig { mode: ConsoleMode::Tty },
        console: ConsoleConfig { mode: ConsoleMode::Off },
        vsock: Some(VsockConfig { cid: CID, socket: around.vsock }),
        pvpanic: true,
        landlock_enable: around.landlock,
        landlock_rules: around.later_disks.into_iter().map(rule).collect(),
    })
}

fn rule((path, access): (PathBuf, &str)) -> LandlockConfig {
    LandlockConfig { path, access: access.to_owned() }
}

fn memory(spec: &VmSpec) -> MemoryConfig {
    let more = spec.most_memory_mib.map(|most| most.saturating_sub(spec.memory_mib));
    let more = more.filter(|mib| *mib > 0);
    MemoryConfig {
        size: bytes(spec.memory_mib),
        // File servers map it; and no page of it is ever merged with another VM's.
        shared: true,
        hotplug_size: more.map(|mib| bytes(mib).next_multiple_of(MORE_MEMORY)),
        hotplug_method: more.map(|_| HotplugMethod::VirtioMem),
    }
}

/// Of so many MiB.
pub(crate) fn bytes(mib: u32) -> u64 {
    u64::from(mib) << 20
}

fn image(image: &GuestImage) -> DiskConfig {
    DiskConfig {
        id: "image".to_owned(),
        path: image.file.clone(),
        readonly: true,
        image_type: ImageType::Raw,
        serial: None,
    }
}

/// What the VMM calls a disk.
pub(crate) fn disk_device(id: &str) -> String {
    format!("disk-{id}")
}

/// A disk whose file the VMM sees at `path`.
pub(crate) fn disk(disk: &DiskSpec, path: PathBuf) -> DiskConfig {
    DiskConfig {
        id: disk_device(&disk.id),
        path,
        readonly: disk.readonly,
        image_type: ImageType::Raw,
        serial: Some(disk.id.clone()),
    }
}

fn file_share(number: usize, share: &ShareSpec) -> Result<FsConfig, HypervisorError> {
    let ShareSource::Server(socket) = &share.source else {
        let what = "directories without a file server";
        return Err(HypervisorError::Unsupported { driver: NAME, what });
    };
    Ok(FsConfig {
        id: format!("share{number}"),
        tag: share.tag.clone(),
        socket: socket.clone(),
        num_queues: 1,
        queue_size: SHARE_QUEUE,
    })
}

#[cfg(test)]
mod tests {
    use kata_hypervisor::{GuestRoot, LaterDisks};

    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            vcpus: 2,
            kernel_params: vec!["agent.log=debug".into()],
            shares: vec![ShareSpec {
                tag: "kataShared".into(),
                source: ShareSource::Server("/run/fs.sock".into()),
            }],
            ..VmSpec::bare(
                "web-1",
                "/share/vmlinux",
                GuestRoot::Initrd("/share/initrd.img".into()),
                "/run/kata/web-1",
            )
        }
    }

    fn rendered(spec: &VmSpec) -> serde_json::Value {
        let around = Surroundings {
            vsock: "/proc/self/fd/5/vsock".into(),
            disks: vec!["/proc/self/fd/6".into()],
            entropy_source: "/dev/urandom".into(),
            later_disks: if spec.later_disks == LaterDisks::default() {
                Vec::new()
            } else {
                vec![("/run/kata/web-1/clh-disks".into(), "rw")]
            },
            landlock: true,
        };
        serde_json::to_value(config(spec, around).unwrap()).unwrap()
    }

    #[test]
    fn image_is_a_disk_that_is_not_written_and_the_root() {
        let image = GuestImage {
            file: "/image".into(),
            file_system: "ext4".into(),
            verity: None,
            drivers: None,
        };
        let rendered = rendered(&VmSpec { root: GuestRoot::Image(image), ..spec() });
        let disk = serde_json::json!({
            "id": "image", "path": "/image", "readonly": true, "image_type": "Raw"
        });
        assert_eq!(rendered["disks"], serde_json::json!([disk]));
        assert!(rendered["payload"].get("initramfs").is_none());
        let cmdline = rendered["payload"]["cmdline"].as_str().unwrap();
        assert!(cmdline.ends_with(" root=/dev/vda1 agent.log=debug"), "{cmdline}");
    }

    #[test]
    fn disks_come_after_the_image_and_room_for_later_ones_is_a_directory() {
        let image = GuestImage {
            file: "/image".into(),
            file_system: "ext4".into(),
            verity: None,
            drivers: None,
        };
        let root = DiskSpec { id: "root".into(), path: "/dev/dm-1".into(), readonly: false };
        let with_both = VmSpec { root: GuestRoot::Image(image), disks: vec![root], ..spec() };
        let disks = rendered(&with_both)["disks"].take();
        assert_eq!(disks[0]["path"], "/image");
        let disk = serde_json::json!({
            "id": "disk-root", "path": "/proc/self/fd/6", "readonly": false, "image_type": "Raw", "serial": "root"
        });
        assert_eq!(disks[1], disk);
        let later_disks = LaterDisks { readonly: 1, writable: 0 };
        let rules = rendered(&VmSpec { later_disks, ..spec() })["landlock_rules"].take();
        let rule = serde_json::json!({ "path": "/run/kata/web-1/clh-disks", "access": "rw" });
        assert_eq!(rules, serde_json::json!([rule]));
    }

    #[test]
    fn room_for_more_is_there_where_it_is_asked_for() {
        let with = VmSpec { most_vcpus: Some(4), most_memory_mib: Some(1000), ..spec() };
        let rendered = rendered(&with);
        assert_eq!(rendered["cpus"], serde_json::json!({ "boot_vcpus": 2, "max_vcpus": 4 }));
        let memory = serde_json::json!({
            "size": 256 << 20, "shared": true, "hotplug_size": 768 << 20, "hotplug_method": "VirtioMem"
        });
        assert_eq!(rendered["memory"], memory);
    }

    #[test]
    fn machine_is_described_whole() {
        let mut rendered = rendered(&spec());
        let cmdline = rendered["payload"]["cmdline"].take();
        let cmdline = cmdline.as_str().unwrap();
        assert!(cmdline.starts_with("console=ttyS0 panic=-1 "), "{cmdline}");
        assert!(cmdline.ends_with(" quiet agent.log=debug"), "{cmdline}");
        let expected = serde_json::json!({
            "cpus": { "boot_vcpus": 2, "max_vcpus": 2 },
            "memory": { "size": 268_435_456, "shared": true },
            "payload": { "kernel": "/share/vmlinux", "cmdline": null, "initramfs": "/share/initrd.img" },
            "rng": { "src": "/dev/urandom" },
            "fs": [{
                "id": "share0", "tag": "kataShared", "socket": "/run/fs.sock", "num_queues": 1, "queue_size": 1024
            }],
            "serial": { "mode": "Tty" },
            "console": { "mode": "Off" },
            "vsock": { "cid": 3, "socket": "/proc/self/fd/5/vsock" },
            "pvpanic": true,
            "landlock_enable": true,
        });
        assert_eq!(rendered, expected);
    }
}
