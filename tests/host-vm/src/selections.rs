//! What of the test binaries runs in each round.

/// A test binary's name, and what of it runs: all, if nothing is named.
pub(crate) type Selection = (&'static str, &'static [&'static str]);

/// A nested guest boots in about ten seconds, so these are the few that show the whole path: the
/// accelerator and channel that are used, a container's life, a pod, disks, whom the VMM runs as,
/// memory and virtual CPUs that come late, an end by violence.
pub(crate) const QEMU: &[Selection] = &[
    ("qemu", &["on_q35"]),
    // Nested guests of a microvm may hang, so that the driver does not choose one under KVM; see
    // `Machine::choose` in host/qemu.
    ("acceleration", &["q35_uses_what_the_machine_has"]),
    ("hotplug", &["processors_that_come_later_are_switched_on"]),
    ("hypervisors", &[]),
    ("lifecycle", &["detached_container_lives_until_it_is_killed"]),
    ("pods", &["members_of_a_pod_share_a_vm_and_nothing_else"]),
    (
        "block",
        &[
            "becomes_a_disk",
            "thin_device_is_shared_where",
            "read_only_root_on_a_disk",
            "block_device_that_is_named",
            "containers_of_a_pod_share_a_device",
            "members_of_a_pod_have_root_file_systems",
        ],
    ),
    ("users", &["every_vmm_is_a_nobody_of_its_own"]),
    ("memory", &["update_of_a_limit_makes_the_vm_larger_and_smaller"]),
    ("vcpus", &["update_of_a_limit_brings_virtual_cpus_and_takes_them"]),
    ("ends", &["guest_that_reboots"]),
    ("kill", &["vmm_is_killed_while_busy"]),
];

/// And for the others, which run nowhere else, what differs from QEMU: streams over another
/// channel, other devices for networks and images, another file server, another way to stand still.
pub(crate) const KRUN: &[Selection] = &[
    ("krun", &[]),
    (
        "lifecycle",
        &["detached_container_lives_until_it_is_killed", "paused_container_stands_still"],
    ),
    ("integrity", &["half_closed_input_reaches_the_process"]),
    (
        "network",
        &[
            "container_has_the_network_of_its_namespace",
            "interface_that_comes_before",
            "pod_has_two_interfaces",
        ],
    ),
    ("assets", IMAGES),
    ("mounts", &["bind_mounts_are_shared_both_ways"]),
    ("pods", &["members_of_a_pod_share_a_vm_and_nothing_else"]),
    ("block", DISKS_AT_BOOT),
    ("ends", &["guest_that_panics"]),
    (
        "kill",
        &["vmm_is_killed_while_busy", "vmm_is_killed_while_it_boots", "shim_is_killed_while_idle"],
    ),
];

pub(crate) const CLOUD_HYPERVISOR: &[Selection] = &[
    ("clh", &[]),
    (
        "lifecycle",
        &["detached_container_lives_until_it_is_killed", "paused_container_stands_still"],
    ),
    ("integrity", &["stream_through_exec_comes_back_whole"]),
    ("network", &["container_has_the_network_of_its_namespace", "interface_that_comes_before"]),
    ("assets", IMAGES),
    ("block", DISKS_AT_BOOT),
    ("kill", &["vmm_is_killed_while_busy", "vmm_is_killed_while_it_boots"]),
    ("program", &[]),
];

/// What is refused of the pods' ones takes a boot, too.
const DISKS_AT_BOOT: &[&str] =
    &["becomes_a_disk", "block_device_that_is_named", "containers_of_a_pod_share_a_device"];

const IMAGES: &[&str] = &["checked_image_boots", "image_that_was_tampered_with"];

pub(crate) const FIRECRACKER: &[Selection] = &[
    // Also in the jailer's cell, where that is there.
    ("fc", &[]),
    ("copies", &[]),
    ("block", &["blockfile_becomes_a_disk", "containers_of_a_pod_share_a_device"]),
    (
        "lifecycle",
        &["detached_container_lives_until_it_is_killed", "paused_container_stands_still"],
    ),
    ("integrity", &["stream_through_exec_comes_back_whole"]),
    ("network", &["container_has_the_network_of_its_namespace"]),
    ("pods", &["members_of_a_pod_share_a_vm_and_nothing_else"]),
    (
        "kill",
        &["vmm_is_killed_while_busy", "vmm_is_killed_while_it_boots", "shim_is_killed_while_idle"],
    ),
    ("firecracker", &[]),
];

/// What differs in the jailer's cell.
pub(crate) const JAILER: &[Selection] = &[
    ("copies", &["root_file_system_is_the_images_and_can_be_changed"]),
    ("network", &["container_has_the_network_of_its_namespace"]),
    ("kill", &["vmm_is_killed_while_it_boots", "shim_is_killed_while_idle"]),
];

/// And what differs with the engines of the machine's release: Docker 26 has shims, and both know
/// cgroups of the second version only.
pub(crate) const ENGINES: &[Selection] = &[
    (
        "docker",
        &[
            "daemon_knows_the_runtime_and_what_it_can",
            "container_is_seen_entered_paused_stopped_and_started_again",
            "networks_publish_ports_and_join_containers",
        ],
    ),
    (
        "podman",
        &[
            "container_is_seen_entered_paused_stopped_and_started_again",
            "pod_is_one_vm_with_one_localhost",
        ],
    ),
];

/// All that is known of them, on a machine where guests boot fast enough.
pub(crate) const ALL_OF_ENGINES: &[Selection] = &[("docker", &[]), ("podman", &[])];
