//! Kernel modules that the host asks for by name, in images that bring modprobe.

use std::path::Path;
use std::process::{Command, Stdio};

use kata_agent_api::agent::KernelModule;
use kata_guest_setup::reaper::{ExitStatus, Reaper};
use ttrpc::Code;

use crate::status::{Tell, invalid, refuse};

const MODPROBE: &str = "/sbin/modprobe";

/// Loads a module with its parameters and what it depends on.
pub(crate) async fn load(reaper: &Reaper, module: &KernelModule) -> ttrpc::Result<()> {
    let name = &module.name;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(plain) {
        return Err(invalid(format!("{name:?} is no name of a kernel module")));
    }
    if let Some(bad) = module.parameters.iter().find(|parameter| parameter.starts_with('-')) {
        return Err(invalid(format!("{bad:?} is no parameter of a kernel module")));
    }
    if !Path::new(MODPROBE).exists() {
        return Err(invalid(format!(
            "kernel module {name} cannot be loaded: this guest image has no {MODPROBE}; \
             put the module into the image instead"
        )));
    }
    let _hold = reaper.hold();
    let child = Command::new(MODPROBE)
        .arg(name)
        .args(&module.parameters)
        .stdin(Stdio::null())
        .spawn()
        .map_err(Tell::tell)?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    match reaper.claim(pid).await {
        Some(ExitStatus::Exited(0)) => Ok(()),
        status => {
            let text = format!("modprobe of kernel module {name} failed ({status:?})");
            Err(refuse(Code::INTERNAL, text))
        }
    }
}
