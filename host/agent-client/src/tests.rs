//! The client against an agent in the same process.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use kata_agent_api::agent::{self, ReadStreamRequest, ReadStreamResponse};
use kata_agent_api::agent_ttrpc::{AgentService, create_agent_service};
use kata_agent_api::empty::Empty;
use kata_agent_api::health::{CheckRequest, HealthCheckResponse, health_check_response};
use kata_agent_api::health_ttrpc::{Health, create_health};
use kata_agent_api::types;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxPersonality, LinuxResources, Process, SpecBuilder, UserBuilder,
};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use ttrpc::Code;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::{AgentClient, AgentError, GuestContainer, ProcessEnd, ProcessId};

const DEADLINE: Duration = Duration::from_secs(20);

fn refusal(code: Code, message: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

/// What the agent in the guest does: what its requests' ids tell it.
struct FakeAgent {
    created: mpsc::UnboundedSender<agent::CreateContainerRequest>,
}

#[async_trait]
impl AgentService for FakeAgent {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: agent::CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        self.created.send(request).map_err(|_| refusal(Code::INTERNAL, "gone"))?;
        Ok(Empty::new())
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: agent::StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        match request.container_id.as_str() {
            "slow" => std::future::pending().await,
            "absent" => Err(refusal(Code::NOT_FOUND, "container absent does not exist")),
            _ => Err(refusal(Code::INTERNAL, "exec \"x\x1b[2J\": no\nsuch file")),
        }
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: agent::WaitProcessRequest,
    ) -> ttrpc::Result<agent::WaitProcessResponse> {
        let status = request.exec_id.parse().unwrap();
        Ok(agent::WaitProcessResponse { status, ..Default::default() })
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: agent::WriteStreamRequest,
    ) -> ttrpc::Result<agent::WriteStreamResponse> {
        let len = if request.exec_id == "greedy" { 1000 } else { request.data.len() as u32 };
        Ok(agent::WriteStreamResponse { len, ..Default::default() })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        let more = usize::from(request.exec_id == "greedy");
        let data = vec![b'x'; request.len as usize + more];
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn get_oom_event(
        &self,
        _: &TtrpcContext,
        _: agent::GetOOMEventRequest,
    ) -> ttrpc::Result<agent::OOMEvent> {
        Ok(agent::OOMEvent { container_id: "../../etc".into(), ..Default::default() })
    }

    async fn list_routes(
        &self,
        _: &TtrpcContext,
        _: agent::ListRoutesRequest,
    ) -> ttrpc::Result<agent::Routes> {
        let route = |dest: &str| types::Route { dest: dest.into(), ..Default::default() };
        let routes = vec![route(""), route("10.0.0.0/8"), route("10.0.0.0/33")];
        Ok(agent::Routes { Routes: routes, ..Default::default() })
    }
}

#[async_trait]
impl Health for FakeAgent {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        let status = health_check_response::ServingStatus::SERVING.into();
        Ok(HealthCheckResponse { status, ..Default::default() })
    }
}

struct Guest {
    client: AgentClient,
    created: mpsc::UnboundedReceiver<agent::CreateContainerRequest>,
    _server: Server,
}

/// An agent on the other end of a pipe that holds so many bytes.
async fn guest(pipe: usize, deadline: Duration) -> Guest {
    let (host_end, guest_end) = tokio::io::duplex(pipe);
    let (sender, created) = mpsc::unbounded_channel();
    let fake = Arc::new(FakeAgent { created: sender });
    let connections = futures::stream::iter([Ok::<DuplexStream, std::io::Error>(guest_end)]);
    let mut server = Server::new()
        .add_listener(Listener::new(connections.chain(futures::stream::pending())))
        .register_service(create_agent_service(fake.clone()))
        .register_service(create_health(fake));
    server.start().await.unwrap();
    Guest { client: AgentClient::new(Box::new(host_end), deadline), created, _server: server }
}

fn process(exec: &str) -> ProcessId {
    ProcessId { container: "c".into(), exec: exec.into() }
}

#[tokio::test]
async fn a_container_is_created() {
    let mut guest = guest(4096, DEADLINE).await;
    guest.client.check().await.unwrap();
    let container = GuestContainer {
        id: "c".into(),
        spec: SpecBuilder::default().hostname("box").build().unwrap(),
        storages: vec![],
        devices: Vec::new(),
        shared_pid_namespace: true,
    };
    guest.client.create_container(&container).await.unwrap();
    let request = guest.created.recv().await.unwrap();
    assert_eq!((request.container_id.as_str(), request.exec_id.as_str()), ("c", "c"));
    assert_eq!(request.OCI.Hostname, "box");
    assert!(request.sandbox_pidns && !request.guest_pidns);

    let mut linux = Linux::default();
    linux.set_namespaces(Some(Vec::new()));
    let spec = SpecBuilder::default().linux(linux).build().unwrap();
    let of_guest = GuestContainer { spec, ..container };
    guest.client.create_container(&of_guest).await.unwrap();
    assert!(guest.created.recv().await.unwrap().guest_pidns);
}

#[tokio::test]
async fn what_cannot_be_carried_is_not_sent() {
    let mut guest = guest(4096, DEADLINE).await;
    let linux = LinuxBuilder::default().personality(LinuxPersonality::default()).build().unwrap();
    let container = GuestContainer {
        id: "c".into(),
        spec: SpecBuilder::default().linux(linux).build().unwrap(),
        storages: vec![],
        devices: Vec::new(),
        shared_pid_namespace: false,
    };
    let error = guest.client.create_container(&container).await.unwrap_err();
    assert!(error.to_string().contains("linux.personality"), "{error}");
    assert!(guest.created.try_recv().is_err());

    // An agent that has not shown itself to be ours would not read it.
    let mut careful = Process::default();
    careful.set_user(UserBuilder::default().umask(0o077_u32).build().unwrap());
    let error = guest.client.exec_process(&process("1"), &careful).await.unwrap_err();
    assert!(error.to_string().contains("does not set a umask (077"), "{error}");
    let files = ["memory.swap.max", "pids.max", "memory.high"];
    let files = files.map(|file| (file.to_owned(), "9".to_owned()));
    let mut limits = LinuxResources::default();
    limits.set_unified(Some(files.into()));
    let error = guest.client.update_container("c", &limits).await.unwrap_err();
    assert!(
        error.to_string().contains("does not set memory.high (linux.resources.unified)"),
        "{error}"
    );

    let data = vec![0; 5 << 20];
    let error = guest.client.write_stdin(&process("1"), data).await.unwrap_err();
    assert!(matches!(error, AgentError::InvalidArgument { method: "WriteStdin", .. }), "{error}");
    guest.client.check().await.unwrap();
}

#[tokio::test]
async fn the_agents_sentence_is_the_error() {
    let guest = guest(4096, DEADLINE).await;
    let error = guest.client.start_container("absent").await.unwrap_err();
    assert!(matches!(error, AgentError::NotFound { method: "StartContainer", .. }), "{error:?}");
    assert_eq!(error.to_string(), "container absent does not exist");

    let error = guest.client.start_container("broken").await.unwrap_err();
    assert!(matches!(error, AgentError::Refused { method: "StartContainer", .. }), "{error:?}");
    assert_eq!(error.to_string(), "exec \"x [2J\": no such file");

    let error = guest.client.pause_container("c").await.unwrap_err();
    assert!(matches!(error, AgentError::Unimplemented { .. }), "{error:?}");
}

#[tokio::test]
async fn reads_are_bounded() {
    let guest = guest(4096, DEADLINE).await;
    assert_eq!(guest.client.read_stdout(&process("p"), 10).await.unwrap(), b"xxxxxxxxxx");
    // More would not fit a message.
    assert_eq!(guest.client.read_stdout(&process("p"), u32::MAX).await.unwrap().len(), 1 << 20);

    let error = guest.client.read_stdout(&process("greedy"), 10).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest's agent answered ReadStdout with 11 bytes where at most 10 were asked for"
    );
}

#[tokio::test]
async fn hostile_answers_are_refused() {
    let guest = guest(4096, DEADLINE).await;
    let client = &guest.client;
    for error in [
        client.write_stdin(&process("greedy"), vec![0; 10]).await.unwrap_err(),
        client.get_oom_event().await.unwrap_err(),
        client.list_routes().await.unwrap_err(),
    ] {
        assert!(matches!(error, AgentError::Hostile { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_exit_status_is_a_byte() {
    let guest = guest(4096, DEADLINE).await;
    for (told, status) in [("0", 0), ("137", 137), ("-1", 255), ("70000", 255)] {
        let end = guest.client.wait_process(&process(told)).await.unwrap();
        assert_eq!(end, ProcessEnd { status, out_of_memory: false });
    }
}

#[tokio::test]
async fn a_request_has_a_deadline() {
    let after = Duration::from_millis(50);
    let guest = guest(4096, after).await;
    let error = guest.client.start_container("slow").await.unwrap_err();
    assert!(
        matches!(error, AgentError::Deadline { method: "StartContainer", after: a } if a == after),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_end_of_the_connection_ends_requests() {
    let (host_end, guest_end) = tokio::io::duplex(4096);
    let client = AgentClient::new(Box::new(host_end), DEADLINE);
    let init = ProcessId::init("c");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait_process(&init).await }
    });
    tokio::task::yield_now().await;
    drop(guest_end);
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, AgentError::Disconnected { method: "WaitProcess" }), "{error:?}");
    let error = client.check().await.unwrap_err();
    assert!(matches!(error, AgentError::Disconnected { method: "Check" }), "{error:?}");
}

#[tokio::test]
async fn an_abandoned_request_does_not_end_the_connection() {
    // So narrow a pipe needs thousands of turns for the request: it is abandoned in its midst.
    let guest = guest(64, DEADLINE).await;
    let process = process("p");
    let some_turns = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = guest.client.write_stdin(&process, vec![0; 1 << 20]) => panic!("that was too fast"),
        () = some_turns => {}
    }
    guest.client.check().await.unwrap();
}
