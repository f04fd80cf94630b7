//! What of the test files runs with which hypervisor in `make test`, and why the rest does not.
//!
//! Every test of `tests/e2e` runs with what the runtime chooses anyway, which is QEMU under
//! emulation where the machine has no KVM. A nested guest boots in about ten seconds, so what runs
//! here with KVM is what shows the whole path (the accelerator and channel that are used, a
//! container's life, a pod, disks, whom the VMM runs as, memory and virtual CPUs that come late, an
//! end by violence), and what differs from QEMU: streams over another channel, other devices for
//! networks and images, another file server, another way to stand still, other ways to end.

use crate::rounds::Hypervisor;

/// What of a test file runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// All of it.
    Whole,
    /// The tests whose names contain one of these, and why not the others; `KATA_HOST_VM_TESTS=all`
    /// runs all.
    Only(&'static [&'static str], &'static str),
    /// Nothing, unless with `KATA_HOST_VM_TESTS=all`, and why.
    ByHand(&'static str),
    /// Nothing, since it would show nothing, and why.
    Never(&'static str),
}

use Choice::{ByHand, Never, Only, Whole};

/// A test of what a hypervisor cannot do. It is left out whatever is asked for.
#[derive(Debug)]
pub(crate) struct Inability {
    /// The test target's name.
    pub(crate) file: &'static str,
    /// The test's whole name.
    pub(crate) test: &'static str,
    /// Whose virtual machines cannot.
    pub(crate) hypervisors: &'static [Hypervisor],
    /// Why not.
    pub(crate) why: &'static str,
}

/// Those that have no file server beside them.
const WITHOUT_SERVER: &[Hypervisor] =
    &[Hypervisor::Krun, Hypervisor::Firecracker, Hypervisor::Jailer];

/// All of them.
pub(crate) const INABILITIES: &[Inability] = &[
    Inability {
        file: "hooks",
        test: "network_of_a_hook_is_the_containers",
        hypervisors: &[Hypervisor::Krun, Hypervisor::Firecracker, Hypervisor::Jailer],
        why: "they take no network interface after they have booted",
    },
    Inability {
        file: "hooks",
        test: "each_runs_where_and_when_the_specification_says",
        hypervisors: &[Hypervisor::Firecracker, Hypervisor::Jailer],
        why: "the host sees nothing of what a container writes to its root file system",
    },
    Inability {
        file: "mounts",
        test: "bind_mounts_are_shared_both_ways",
        hypervisors: &[Hypervisor::Firecracker, Hypervisor::Jailer],
        why: COPIES,
    },
    Inability {
        file: "network",
        test: "macvtap_carries_the_same",
        hypervisors: &[Hypervisor::Firecracker, Hypervisor::Jailer],
        why: NO_MACVTAP,
    },
    Inability {
        file: "network",
        test: "namespace_with_a_macvtap_survives_the_same_deaths",
        hypervisors: &[Hypervisor::Firecracker, Hypervisor::Jailer],
        why: NO_MACVTAP,
    },
    Inability {
        file: "ends",
        test: "guest_that_halts_is_told",
        hypervisors: &[Hypervisor::Krun],
        why: SILENCE,
    },
    Inability {
        file: "ends",
        test: "guest_that_powers_off_is_told",
        hypervisors: &[Hypervisor::Krun],
        why: SILENCE,
    },
    Inability {
        file: "kill",
        test: "container_ends_while_there_is_no_containerd",
        hypervisors: &[Hypervisor::Firecracker, Hypervisor::Jailer],
        why: COPIES_FILES,
    },
    Inability {
        file: "kill",
        test: "container_that_cannot_die_ends_with_its_sandbox",
        hypervisors: WITHOUT_SERVER,
        why: NO_SERVER,
    },
    Inability {
        file: "kill",
        test: "file_server_is_killed_while_idle",
        hypervisors: WITHOUT_SERVER,
        why: NO_SERVER,
    },
    Inability {
        file: "kill",
        test: "file_server_is_killed_while_busy",
        hypervisors: WITHOUT_SERVER,
        why: NO_SERVER,
    },
    Inability {
        file: "kill",
        test: "file_server_is_killed_while_the_vmm_boots",
        hypervisors: WITHOUT_SERVER,
        why: NO_SERVER,
    },
    Inability {
        file: "kill",
        test: "file_server_is_killed_while_it_is_deleted",
        hypervisors: WITHOUT_SERVER,
        why: NO_SERVER,
    },
    Inability {
        file: "assets",
        test: "compressed_kernels_boot",
        hypervisors: &[Hypervisor::Krun, Hypervisor::Firecracker, Hypervisor::Jailer],
        why: "they take uncompressed kernels only",
    },
    Inability {
        file: "assets",
        test: "distributions_kernel_boots_from_its_initrd",
        hypervisors: &[Hypervisor::Krun, Hypervisor::Firecracker, Hypervisor::Jailer],
        why: NOT_ITS_KERNEL,
    },
    Inability {
        file: "assets",
        test: "distributions_kernel_boots_from_an_image_with_drivers",
        hypervisors: &[Hypervisor::Krun, Hypervisor::Firecracker, Hypervisor::Jailer],
        why: NOT_ITS_KERNEL,
    },
    Inability {
        file: "assets",
        test: "small_kernel_boots_from_an_image",
        hypervisors: &[Hypervisor::Firecracker, Hypervisor::Jailer],
        why: COPIES_FILES,
    },
    Inability {
        file: "assets",
        test: "small_kernel_boots_from_its_initrd",
        hypervisors: &[Hypervisor::Firecracker, Hypervisor::Jailer],
        why: COPIES_FILES,
    },
    Inability {
        file: "assets",
        test: "image_with_systemd_runs_the_agent_as_a_service",
        hypervisors: &[
            Hypervisor::Qemu,
            Hypervisor::Krun,
            Hypervisor::CloudHypervisor,
            Hypervisor::Firecracker,
            Hypervisor::Jailer,
        ],
        why: "it fetches packages, and the machine has no network",
    },
];

/// The tests of a file that are left out with a hypervisor.
pub(crate) fn inabilities(
    file: &str,
    hypervisor: Hypervisor,
) -> impl Iterator<Item = &'static Inability> {
    let of_file = INABILITIES.iter().filter(move |one| one.file == file);
    of_file.filter(move |one| one.hypervisors.contains(&hypervisor))
}

/// One test file.
#[derive(Debug)]
pub(crate) struct Row {
    /// The test target's name.
    pub(crate) file: &'static str,
    choices: [Choice; 6],
}

impl Row {
    /// What runs with the hypervisor.
    pub(crate) fn choice(&self, hypervisor: Hypervisor) -> Choice {
        self.choices[hypervisor as usize]
    }
}

const TIME: &str = "it takes long";
const ABOVE: &str = "it takes long, and what it tests is above the hypervisor";
const OTHERS: &str = "it is another driver's own";
const QEMUS: &str = "it configures QEMU";
const FIXED: &str = "this hypervisor gives a virtual machine nothing once it runs";
const CHOSEN: &str = "the hypervisors' own rounds run it";
const ITSELF: &str = "it chooses its hypervisors itself";
const ENGINES: &str = "it runs with the hypervisor that the runtime chooses";
const JAILED: &str = "only what the jailer changes runs with it; the rest is as without it";
const SHARES: &str = "this hypervisor shares files, and needs no copies";
const COPIES: &str = "this hypervisor shares no files";
const NO_GUEST: &str = "the hypervisor makes no difference to it";
const CONTAINERD: &str = "it changes containerd's release, not the hypervisor";
const SOAK: &str = "`make soak` runs it, with QEMU";
const NOT_ITS_KERNEL: &str =
    "they need drivers that a distribution's kernel has not, or not in the test's initial ramdisk";
const COPIES_FILES: &str = "it also tests shared files, and they copy them";
const NO_MACVTAP: &str = "it opens taps by their names, and a macvtap is a file";
const NO_SERVER: &str = "there is no file server beside them";
const SILENCE: &str = "its end is told by its silence alone, which takes five minutes";
/// Nested guests of a microvm may hang, so that the driver does not choose one under KVM; see
/// `Machine::choose` in host/qemu.
const MICROVM: &str = "a microvm may hang where KVM is nested";

/// With QEMU, krun, Cloud Hypervisor, Firecracker, and Firecracker's jailer.
const fn row(file: &'static str, [qemu, krun, clh, fc, jailer]: [Choice; 5]) -> Row {
    Row { file, choices: [qemu, krun, clh, fc, jailer, Never(CHOSEN)] }
}

/// Only with QEMU.
const fn qemu(file: &'static str, choice: Choice) -> Row {
    let no = Never(QEMUS);
    row(file, [choice, no, no, no, no])
}

/// Where the VM's size follows its containers' limits.
const fn qemu_and_clh(file: &'static str, choice: Choice) -> Row {
    let no = Never(FIXED);
    row(file, [choice, no, choice, no, no])
}

/// The same with each.
const fn each(file: &'static str, choice: Choice) -> Row {
    row(file, [choice, choice, choice, choice, choice])
}

/// Docker and Podman, by what the runtime chooses.
const fn engine(file: &'static str, choice: Choice) -> Row {
    let no = Never(ENGINES);
    Row { file, choices: [no, no, no, no, no, choice] }
}

const OTHER: Choice = Never(OTHERS);

const LIVES_AND_STANDS_STILL: Choice =
    Only(&["detached_container_lives_until_it_is_killed", "paused_container_stands_still"], ABOVE);
const IMAGES: Choice = Only(&["checked_image_boots", "image_that_was_tampered_with"], TIME);
/// Who chooses QEMU gets it without KVM, too.
const CHOICES: Choice =
    Only(&["no_choice_is_krun", "runtimes_name_chooses_krun", "behind_its_walls"], TIME);
/// What is refused of the pods' ones takes a boot, too.
const DISKS_AT_BOOT: Choice = Only(
    &["becomes_a_disk", "block_device_that_is_named", "containers_of_a_pod_share_a_device"],
    TIME,
);
const DISKS_THAT_COME_AND_GO: Choice = Only(
    &[
        "becomes_a_disk",
        "block_device_that_is_named",
        "containers_of_a_pod_share_a_device",
        "members_of_a_pod_have_root_file_systems",
    ],
    TIME,
);
const DISKS_OF_FIRECRACKER: Choice = Only(
    &[
        "blockfile_becomes_a_disk",
        "disk_of_firecracker",
        "containers_of_a_pod_share_a_device",
        "read_only_device_comes_into_a_pod",
    ],
    TIME,
);
const STREAM: Choice = Only(&["stream_through_exec_comes_back_whole"], ABOVE);
const NAMESPACE: Choice = Only(&["container_has_the_network_of_its_namespace"], TIME);
const MEMBERS: Choice = Only(&["members_of_a_pod_share_a_vm_and_nothing_else"], ABOVE);
const PROCESSORS: Choice = Only(&["container_is_where_its_processors_are"], ABOVE);
const VMM_AND_SHIM: Choice = Only(
    &["vmm_is_killed_while_busy", "vmm_is_killed_while_it_boots", "shim_is_killed_while_idle"],
    TIME,
);

/// Every test file there is, in the order in which they run.
pub(crate) const TABLE: &[Row] = &[
    // The drivers alone.
    row("qemu", [Whole, OTHER, OTHER, OTHER, OTHER]),
    row("krun", [OTHER, Whole, OTHER, OTHER, OTHER]),
    row("clh", [OTHER, OTHER, Whole, OTHER, OTHER]),
    // Also in the jailer's cell, where that is there.
    row("fc", [OTHER, OTHER, OTHER, Whole, Never(JAILED)]),
    row("program", [OTHER, OTHER, Whole, OTHER, OTHER]),
    row("firecracker", [OTHER, OTHER, OTHER, Whole, Never(JAILED)]),
    each("description", Never("it compares our words with the published ones, and boots nothing")),
    each("fake", Never("it is the contract of a driver that boots nothing")),
    // The agent alone.
    qemu("hotplug", Only(&["processors_that_come_later_are_switched_on"], ABOVE)),
    each("containers", Never(NO_GUEST)),
    each("io", Never(NO_GUEST)),
    each("machine", Never(NO_GUEST)),
    each("names", Never(NO_GUEST)),
    each("packages", Never(NO_GUEST)),
    each("ports", Never(NO_GUEST)),
    // The whole.
    qemu("acceleration", Only(&["q35_uses_what_the_machine_has"], MICROVM)),
    row("hypervisors", [CHOICES, Never(ITSELF), Never(ITSELF), Never(ITSELF), Never(ITSELF)]),
    row(
        "lifecycle",
        [
            ByHand(ABOVE),
            LIVES_AND_STANDS_STILL,
            LIVES_AND_STANDS_STILL,
            LIVES_AND_STANDS_STILL,
            ByHand(JAILED),
        ],
    ),
    row(
        "copies",
        [
            Never(SHARES),
            Never(SHARES),
            Never(SHARES),
            Whole,
            Only(&["root_file_system_is_the_images_and_can_be_changed"], JAILED),
        ],
    ),
    row(
        "integrity",
        [
            ByHand(ABOVE),
            Only(&["half_closed_input_reaches_the_process"], ABOVE),
            STREAM,
            STREAM,
            ByHand(JAILED),
        ],
    ),
    row(
        "network",
        [
            Only(&["vhost_net_is_used"], TIME),
            Only(&["interface_that_comes_before", "pod_has_two_interfaces"], TIME),
            Only(
                &["container_has_the_network_of_its_namespace", "interface_that_comes_before"],
                TIME,
            ),
            Only(
                &["container_has_the_network_of_its_namespace", "sends_no_faster_than_it_may"],
                TIME,
            ),
            NAMESPACE,
        ],
    ),
    row("assets", [ByHand(TIME), IMAGES, IMAGES, IMAGES, Only(&["checked_image_boots"], JAILED)]),
    row(
        "mounts",
        [
            ByHand(TIME),
            Only(&["bind_mounts_are_shared_both_ways"], TIME),
            ByHand(TIME),
            ByHand(TIME),
            ByHand(JAILED),
        ],
    ),
    row("pods", [MEMBERS, MEMBERS, ByHand(TIME), MEMBERS, ByHand(JAILED)]),
    row(
        "block",
        [
            Only(
                &[
                    "becomes_a_disk",
                    "thin_device_is_shared_where",
                    "containers_of_a_pod_share_a_device",
                    "members_of_a_pod_have_root_file_systems",
                ],
                TIME,
            ),
            DISKS_AT_BOOT,
            DISKS_THAT_COME_AND_GO,
            DISKS_OF_FIRECRACKER,
            Only(&["device_mappers_thin_device_becomes_a_disk"], JAILED),
        ],
    ),
    qemu("users", Only(&["every_vmm_is_a_nobody_of_its_own"], TIME)),
    qemu_and_clh("memory", Only(&["update_of_a_limit_makes_the_vm_larger_and_smaller"], TIME)),
    qemu_and_clh("vcpus", Only(&["update_of_a_limit_brings_virtual_cpus_and_takes_them"], TIME)),
    // The host's cgroups are of version 2 there; a jailer knows of cgroups, and is to leave them.
    row("placement", [ByHand(ABOVE), PROCESSORS, ByHand(ABOVE), ByHand(ABOVE), PROCESSORS]),
    row(
        "ends",
        [
            Only(&["guest_that_reboots"], TIME),
            Only(
                &["guest_that_panics"],
                "it takes long, and a power-off is not told from silence there",
            ),
            ByHand(TIME),
            // A reset is the one way out that its guests have, and what they say tells the ends
            // apart; a power-off is noticed by their silence.
            Only(&["guest_that_panics", "guest_that_powers_off"], TIME),
            ByHand(JAILED),
        ],
    ),
    row(
        "kill",
        [
            Only(&["vmm_is_killed_while_busy"], TIME),
            VMM_AND_SHIM,
            Only(&["vmm_is_killed_while_busy", "vmm_is_killed_while_it_boots"], TIME),
            VMM_AND_SHIM,
            Only(&["vmm_is_killed_while_it_boots", "shim_is_killed_while_idle"], JAILED),
        ],
    ),
    // The engines of the machine's release: Docker 26 has shims, and both know cgroups of the
    // second version only.
    engine(
        "docker",
        Only(
            &[
                "daemon_knows_the_runtime_and_what_it_can",
                "container_is_seen_entered_paused_stopped_and_started_again",
            ],
            ABOVE,
        ),
    ),
    engine("podman", Only(&["container_is_seen_entered_paused_stopped_and_started_again"], ABOVE)),
    engine("podman_pods", ByHand(ABOVE)),
    // The machine's init is systemd.
    engine("systemd", Whole),
    // What is above the hypervisor.
    row(
        "command_line",
        [
            ByHand(ABOVE),
            ByHand(ABOVE),
            ByHand(ABOVE),
            Only(&["who_looks_into_the_pid"], ABOVE),
            ByHand(ABOVE),
        ],
    ),
    each("kill_by_hand", ByHand(ABOVE)),
    // What another server than kata-virtiofsd does with what comes and goes.
    row("pods_by_hand", [ByHand(ABOVE), Whole, ByHand(ABOVE), Never(COPIES), Never(COPIES)]),
    each("output_by_hand", ByHand(ABOVE)),
    each("processes_by_hand", ByHand(ABOVE)),
    each("hooks", ByHand(ABOVE)),
    each("hooks_by_hand", ByHand(ABOVE)),
    each("callers", ByHand(ABOVE)),
    each("crio_by_hand", ByHand(ABOVE)),
    each("reaper", ByHand(ABOVE)),
    each("timeline", ByHand(ABOVE)),
    each("orders", Never(NO_GUEST)),
    each("differential", Never(NO_GUEST)),
    each("ksm", Never(NO_GUEST)),
    each("packet_filter", Never("it is the guest kernel that it tests")),
    each("host", Never(NO_GUEST)),
    each("versions", Never(CONTAINERD)),
    each("soak", Never(SOAK)),
    // QEMU's own, which emulation shows as well.
    qemu("failures", ByHand(ABOVE)),
    qemu("file_server", ByHand(ABOVE)),
    qemu("guest", ByHand(ABOVE)),
    qemu("huge_pages", Whole),
    qemu(
        "template",
        Only(&["sandboxes_go_on_from_one_guest_and_have_nothing_of_it_in_common"], TIME),
    ),
];
