//! What of /proc/self/mounts must be the same.

/// Destination, type and options of every mount, without what only the host's side of a share
/// decides.
pub(crate) fn normalized(table: &str) -> String {
    let lines = table.lines().filter(|line| !masks_what_only_some_kernels_have(line));
    let mut lines = lines.map(normalized_line).collect::<Vec<_>>();
    lines.push(String::new());
    lines.join("\n")
}

fn normalized_line(line: &str) -> String {
    let columns: Vec<_> = line.split(' ').collect();
    let [_, destination, kind, options, ..] = columns[..] else { return line.to_owned() };
    // A host's file system shows itself under runc, and comes over virtio-fs under kata.
    let shared =
        destination == "/" || matches!(kind, "virtiofs" | "ext4" | "xfs" | "btrfs" | "overlay");
    let kind = if shared { "shared" } else { kind };
    let mut options: Vec<_> =
        options.split(',').filter(|option| !shared || matches!(*option, "ro" | "rw")).collect();
    // Newer kernels show it where older ones don't.
    options.retain(|option| *option != "inode64");
    format!("{destination} {kind} {}", options.join(","))
}

/// A mask lies only over what is there.
fn masks_what_only_some_kernels_have(line: &str) -> bool {
    const EVERYWHERE: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];
    let destination = line.split(' ').nth(1).unwrap_or_default();
    let in_kernel = destination.starts_with("/proc/") || destination.starts_with("/sys/firmware");
    in_kernel && !EVERYWHERE.contains(&destination)
}
