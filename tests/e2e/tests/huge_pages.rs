//! Guest memory of the host's huge pages.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kata_e2e::{Deadline, Part, Scenario, only_a_vm, parts_of};

/// 256 MiB for what has no limit.
const CONFIGURATION: &str = "[hypervisor.qemu]
enable_hugepages = true
default_memory = 256
";

/// How many pages of 2 MiB that takes.
const PAGES: u64 = 128;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn number(file: &str) -> Result<u64> {
    let text = fs::read_to_string(Path::new(POOL).join(file)).context("no huge pages")?;
    Ok(text.trim().parse()?)
}

/// Pages that were set aside for this test, and are given back with it.
struct Reserved {
    before: u64,
}

impl Reserved {
    /// `None` if the machine's memory is too scattered.
    fn new(pages: u64) -> Result<Option<Self>> {
        let (before, free) = (number("nr_hugepages")?, number("free_hugepages")?);
        let reserved = Self { before };
        fs::write(Path::new(POOL).join("nr_hugepages"), (before + pages).to_string())?;
        Ok((number("free_hugepages")? >= free + pages).then_some(reserved))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(POOL).join("nr_hugepages"), self.before.to_string());
    }
}

/// In one test, for the pages are the machine's: first there are too few of them, then there are
/// enough.
#[test]
fn memory_is_of_huge_pages_or_the_lack_of_them_is_told() -> Result<()> {
    if !only_a_vm("huge pages") || !Path::new(POOL).exists() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("configuration.toml");
    fs::write(&file, CONFIGURATION)?;
    let scenario = || Scenario::new().configuration(&file);
    if number("free_hugepages")? < PAGES {
        scenario().run(|containerd| {
            let client = containerd.run(["true"]).attach()?;
            let error = client.wait_until(Deadline::for_command())?.failure()?;
            ensure!(error.contains("128 huge pages of 2 MiB"), "{error}");
            ensure!(error.contains("/proc/sys/vm/nr_hugepages"), "{error}");
            Ok(())
        })?;
    }
    let Some(_reserved) = Reserved::new(PAGES)? else {
        println!("skipped: the kernel finds no room for {PAGES} huge pages");
        return Ok(());
    };
    let free = number("free_hugepages")?;
    scenario().run(|containerd| {
        let container = containerd.run(["sleep", "1000"]).start()?;
        let vmms = parts_of(containerd.mark(), Part::Vmm)?;
        let [vmm] = vmms.as_slice() else { anyhow::bail!("not exactly one VMM: {vmms:?}") };
        let maps = fs::read_to_string(format!("/proc/{}/smaps_rollup", vmm.pid))?;
        let huge = maps.lines().find_map(|line| line.strip_prefix("Shared_Hugetlb:"));
        let private = maps.lines().find_map(|line| line.strip_prefix("Private_Hugetlb:"));
        let kib = |line: Option<&str>| -> Result<u64> {
            let word = line.and_then(|line| line.split_whitespace().next());
            Ok(word.context("no such line")?.parse()?)
        };
        ensure!(kib(huge)? + kib(private)? > 0, "{maps}");
        ensure!(number("resv_hugepages")? + free - number("free_hugepages")? >= PAGES);
        // Files pass through memory that the file server shares.
        let output = container.exec(["sh", "-c", "echo it works >/file; cat /file"]).output()?;
        assert_eq!(output.success()?, "it works\n");
        container.remove()
    })?;
    assert_eq!(number("free_hugepages")?, free, "pages were not given back");
    Ok(())
}
