//! The health service.

use async_trait::async_trait;
use kata_agent_api::health::health_check_response::ServingStatus;
use kata_agent_api::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_agent_api::health_ttrpc::Health;
use ttrpc::r#async::TtrpcContext;

/// Version of the protocol, as upstream's agents tell it.
const PROTOCOL_VERSION: &str = "0.0.1";

/// Answers that the agent serves: whoever gets an answer knows.
pub(crate) struct HealthService;

#[async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        _context: &TtrpcContext,
        _request: CheckRequest,
    ) -> ttrpc::Result<HealthCheckResponse> {
        let mut response = HealthCheckResponse::new();
        response.status = ServingStatus::SERVING.into();
        Ok(response)
    }

    async fn version(
        &self,
        _context: &TtrpcContext,
        _request: CheckRequest,
    ) -> ttrpc::Result<VersionCheckResponse> {
        let mut response = VersionCheckResponse::new();
        PROTOCOL_VERSION.clone_into(&mut response.grpc_version);
        crate::VERSION.clone_into(&mut response.agent_version);
        Ok(response)
    }
}
