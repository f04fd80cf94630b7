//! `kata-image rootfs`.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use kata_initrd::Progress;
use kata_rootfs::{FileSystem, Init, RootfsOptions, Suite, build_rootfs, fetch_with_dependencies};

use crate::agent;
use crate::cli::{FirstProcess, Hypervisor, Kind, RootfsCommand};
use crate::output::write;
use crate::progress::Teller;

pub(crate) fn run(command: &RootfsCommand, teller: &Teller) -> Result<()> {
    let (_, agent) = agent::read(command.agent.as_deref())?;
    // It holds the packages until they are in the image.
    let place = tempfile::tempdir().context("cannot make a directory")?;
    let mut names = command.packages.clone();
    let init = match command.init {
        FirstProcess::Agent => Init::Agent,
        FirstProcess::Systemd => {
            // With the library that it loads modules by, if there are any; it is only recommended.
            names.extend(["systemd", "libkmod2"].map(str::to_owned));
            Init::Systemd
        }
    };
    let packages = if names.is_empty() {
        Vec::new()
    } else {
        teller.stage(&format!("download packages of {}", command.suite));
        let suite = Suite::new(&command.suite)?;
        fetch_with_dependencies(&suite, &names, place.path(), teller)?
    };
    teller.stage("build the file system");
    let file_system = match command.file_system {
        Kind::Erofs => FileSystem::Erofs,
        Kind::Ext4 => FileSystem::Ext4,
    };
    let image = build_rootfs(&RootfsOptions {
        agent: &agent,
        packages: &packages,
        init,
        file_system,
        verity: command.verity,
    })
    .context("cannot build the rootfs image")?;
    write(&command.output, &image.disk, teller)?;
    let params = image.verity.map(|verity| verity.kernel_verity_params()).unwrap_or_default();
    if let Some(config) = &command.config {
        let path = std::path::absolute(&command.output).context("cannot tell the image's path")?;
        let all = Hypervisor::value_variants();
        let chosen = if command.hypervisors.is_empty() { all } else { &command.hypervisors };
        write(config, drop_in(&path, file_system, &params, chosen)?.as_bytes(), teller)?;
    }
    if command.verity {
        teller.fact("kernel_verity_params", &params);
    }
    Ok(())
}

/// A configuration file that chooses this image and nothing else.
fn drop_in(
    image: &Path,
    file_system: FileSystem,
    verity: &str,
    hypervisors: &[Hypervisor],
) -> Result<String> {
    let image = image.to_str().context("the image's path is not UTF-8")?;
    let file_system = file_system.name();
    let sections = hypervisors.iter().map(|hypervisor| {
        format!(
            "\n[hypervisor.{}]\ninitrd = \"\"\nimage = {image:?}\nrootfs_type = \"{file_system}\"\n\
             kernel_verity_params = \"{verity}\"\n",
            hypervisor.section()
        )
    });
    let head = "# Boots this image instead of an initrd. Written by kata-image.\n";
    Ok([head.to_owned()].into_iter().chain(sections).collect())
}

#[cfg(test)]
mod tests {
    use kata_config::{HostConfig, Root};

    use super::*;

    #[test]
    fn drop_in_is_a_configuration_that_boots_the_image() {
        let image = Path::new("/var/lib/an image\".img");
        let verity = format!(
            "root_hash={},salt={},data_blocks=10,data_block_size=4096,hash_block_size=4096",
            "0".repeat(64),
            "1".repeat(64)
        );
        let text =
            drop_in(image, FileSystem::Erofs, &verity, Hypervisor::value_variants()).unwrap();
        let config = HostConfig::parse(&text, Path::new("x.toml"), Path::new("/usr")).unwrap();
        for vm in [&config.clh.vm, &config.firecracker.vm, &config.krun.vm, &config.qemu.vm] {
            assert!(matches!(vm.root(), Root::Image(found) if found == image), "{vm:?}");
            assert!(vm.kernel_verity_params.is_some(), "{vm:?}");
        }
        let one = drop_in(image, FileSystem::Ext4, "", &[Hypervisor::Krun]).unwrap();
        assert_eq!(one.matches("[hypervisor.").count(), 1);
        assert!(one.contains("[hypervisor.krun]") && one.contains("\"ext4\""), "{one}");
    }
}
