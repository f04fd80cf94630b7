//! Processes as containerd lists them.

use kata_sandbox::Status;
use kata_shim_api::api;
use protobuf::well_known_types::any::Any;
use protobuf::{CodedOutputStream, MessageField};

use crate::error::Failure;

/// The message that tells an exec's id; containerd's `ctr task ps` and CRI read it.
const DETAILS: &str = "containerd.runc.v1.ProcessDetails";

pub(crate) fn status(status: Status) -> api::Status {
    match status {
        Status::Created => api::Status::CREATED,
        Status::Running => api::Status::RUNNING,
        Status::Paused => api::Status::PAUSED,
        Status::Stopped(_) => api::Status::STOPPED,
    }
}

/// The container's init and execs. All of them are the VMM to the host, which is the only process
/// that it can see.
pub(crate) fn infos(pid: u32, execs: &[String]) -> Result<Vec<api::ProcessInfo>, Failure> {
    let init = api::ProcessInfo { pid, ..Default::default() };
    let execs = execs.iter().map(|exec| {
        let info =
            Any { type_url: DETAILS.to_owned(), value: details(exec)?, ..Default::default() };
        Ok(api::ProcessInfo { pid, info: MessageField::some(info), ..Default::default() })
    });
    std::iter::once(Ok(init)).chain(execs).collect()
}

/// `ProcessDetails { string exec_id = 1; }`.
fn details(exec: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut bytes);
    stream
        .write_string(1, exec)
        .and_then(|()| stream.flush())
        .map_err(|error| Failure::invalid("exec id", &error))?;
    drop(stream);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn execs_follow_the_init_with_their_ids() {
        let infos = infos(7, &["e1".to_owned()]).unwrap();
        assert_eq!(infos.len(), 2);
        assert!(infos[0].info.is_none());
        assert_eq!(infos[1].info.value, b"\x0a\x02e1");
    }
}
