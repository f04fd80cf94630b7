//! The task service under both of its names.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_shim_protos::shim_async::create_task;
use ttrpc::r#async::Service;

pub use containerd_shim_protos::api;
pub use containerd_shim_protos::shim_async::{Task, TaskClient};

/// What the generated code registers.
pub(crate) const TASK_V3: &str = "containerd.task.v3.Task";
/// The same service as containerd 1.x, CRI-O, and 2.x with a version 2 shim know it.
const TASK_V2: &str = "containerd.task.v2.Task";

/// Services that containerd 2.x may ask for and that are not there.
///
/// The server answers an unknown service with INVALID_ARGUMENT, while containerd falls back only on
/// UNIMPLEMENTED, which is what an unknown method of a known service gets: hence services without
/// methods.
const ABSENT: [&str; 2] =
    ["containerd.runtime.sandbox.v1.Sandbox", "containerd.services.streaming.v1.Streaming"];

/// The services to register with a ttrpc server so that containerd 1.6 to 2.x and CRI-O all find
/// `task`.
///
/// Versions 2 and 3 of the task service differ in nothing but the name. Services that a shim may
/// have but this one lacks answer UNIMPLEMENTED.
pub fn task_services<T: Task + Send + Sync + 'static>(task: &Arc<T>) -> HashMap<String, Service> {
    let create = || create_task(Arc::<T>::clone(task));
    let mut services = create();
    if let Some(v2) = create().remove(TASK_V3) {
        services.insert(TASK_V2.to_owned(), v2);
    }
    for name in ABSENT {
        services
            .insert(name.to_owned(), Service { methods: HashMap::new(), streams: HashMap::new() });
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    #[async_trait::async_trait]
    impl Task for Nothing {}

    #[test]
    fn task_services_cover_both_versions_with_the_same_methods() {
        let services = task_services(&Arc::new(Nothing));
        let methods = |name: &str| {
            let mut names: Vec<_> = services[name].methods.keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(methods(TASK_V2), methods(TASK_V3));
        assert_eq!(methods(TASK_V2).len(), 17);
        assert!(ABSENT.iter().all(|name| methods(name).is_empty()));
    }

    #[tokio::test]
    async fn an_absent_service_is_unimplemented_and_a_task_is_found_under_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix://{}", dir.path().join("s").display());
        let mut server = ttrpc::r#async::Server::new()
            .bind(&address)
            .unwrap()
            .register_service(task_services(&Arc::new(Nothing)));
        server.start().await.unwrap();
        let client = ttrpc::r#async::Client::connect(&address).await.unwrap();
        let mut codes = Vec::new();
        for service in [ABSENT[0], ABSENT[1], TASK_V2, TASK_V3] {
            let request = ttrpc::Request {
                service: service.to_owned(),
                method: "State".to_owned(),
                ..Default::default()
            };
            let Err(ttrpc::Error::RpcStatus(status)) = client.request(request).await else {
                panic!("{service} answered")
            };
            codes.push(status.code());
        }
        // The generated default of a method answers NOT_FOUND: it was reached.
        use ttrpc::Code::{NOT_FOUND, UNIMPLEMENTED};
        assert_eq!(codes, [UNIMPLEMENTED, UNIMPLEMENTED, NOT_FOUND, NOT_FOUND]);
    }
}
