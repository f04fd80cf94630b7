//! What may be done with the files that are left, also by who finds a way past the root directory
//! (landlock(7)).

use ::landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope,
};
use anyhow::{Context, Result};

use crate::jail::Inside;
use crate::options::Options;

/// The version whose rights are meant. An older kernel that lacks some of them enforces the others.
const VERSION: ABI = ABI::V6;

/// The first version that lets files be renamed and linked across directories (Linux 5.19).
const LEAST: u32 = 2;

/// Shuts the calling thread, and all that it will start, in; does nothing where the kernel has no
/// landlock that would do.
pub(crate) fn restrict(options: &Options, inside: &Inside) -> Result<()> {
    if kata_linux::landlock::version().is_none_or(|version| version < LEAST) {
        return Ok(());
    }
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let sockets = AccessFs::MakeSock | AccessFs::RemoveFile | AccessFs::ReadDir;
    // Programs of the guest are data here.
    let share = AccessFs::from_all(VERSION) & !AccessFs::Execute;
    let mut rules: Vec<(&std::path::Path, BitFlags<AccessFs>)> = vec![
        ("/dev/kvm".as_ref(), device),
        ("/dev/null".as_ref(), AccessFs::ReadFile | AccessFs::WriteFile),
        ("/dev/urandom".as_ref(), AccessFs::ReadFile.into()),
        ("/proc".as_ref(), AccessFs::ReadFile | AccessFs::ReadDir),
        (&inside.kernel, AccessFs::ReadFile.into()),
        (&inside.vsock_dir, sockets),
    ];
    let files = inside.initrd.iter().chain(&inside.image);
    rules.extend(files.map(|file| (file.as_path(), AccessFs::ReadFile.into())));
    rules.extend(options.disks.iter().zip(&inside.disks).map(|(disk, file)| {
        // Of a device its size is asked for.
        let read = AccessFs::ReadFile | AccessFs::IoctlDev;
        let access = if disk.readonly { read } else { read | AccessFs::WriteFile };
        (file.as_path(), access)
    }));
    rules.extend(inside.shares.iter().map(|directory| (directory.as_path(), share)));

    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(VERSION))?
        .scope(Scope::from_all(VERSION))?
        .create()?;
    for (path, access) in rules {
        let file = PathFd::new(path).with_context(|| format!("cannot open {}", path.display()))?;
        ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
    }
    ruleset.restrict_self()?;
    Ok(())
}
