//! What the transport is given: the domains, and the few things that only the composition root knows. Nothing here is made
//! by the transport itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use tidegate_batch::ObjectService;
use tidegate_batch::policy::PolicyCell;
use tidegate_cdc::StreamService;
use tidegate_cdc::group::GroupService;
use tidegate_cdc::source::SourceService;
use tidegate_checkpoint::Checkpoints;
use tidegate_core::Clock;
use tidegate_core::limit::Limit;
use tidegate_lease::audit::Auditor;
use tidegate_query::QueryService;

use crate::auth::Authenticator;

/// The part of the configuration that is not a run-time setting, as `GET /v1/config` shows it.
pub trait ConfigView: Send + Sync + 'static {
    /// Dotted keys with their effective values. Secrets must be redacted already.
    fn entries(&self) -> Vec<(String, Value)>;
}

/// A configuration without anything in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoConfig;

impl ConfigView for NoConfig {
    fn entries(&self) -> Vec<(String, Value)> {
        Vec::new()
    }
}

/// Where `GET /metrics` gets its text from.
pub trait MetricsText: Send + Sync + 'static {
    /// All metrics in Prometheus' text format.
    fn render(&self) -> String;
}

impl<F: Fn() -> String + Send + Sync + 'static> MetricsText for F {
    fn render(&self) -> String {
        self()
    }
}

/// Everything that the routes reach.
#[derive(Clone)]
pub struct Services {
    /// Query-result streams, and the run-time settings.
    pub query: QueryService,
    /// Change streams. Their settings must be the query service's own cell.
    pub streams: StreamService,
    /// Their consumer groups.
    pub groups: GroupService,
    /// Where change streams come from databases.
    pub sources: SourceService,
    /// Checkpoints of stream processors, to be looked at.
    pub checkpoints: Checkpoints,
    /// Objects in tiers.
    pub objects: ObjectService,
    /// Who may use them, and how much: `limits.object.*`, which `PATCH /v1/config` replaces.
    pub object_policy: Arc<PolicyCell>,
    /// What an earlier process left half done is being cleared away: until it is `false`, `GET /readyz` answers 503.
    pub recovering: Arc<AtomicBool>,
    /// Who asks.
    pub auth: Authenticator,
    /// The configuration for `GET /v1/config`.
    pub config: Arc<dyn ConfigView>,
    /// The metrics for `GET /metrics`.
    pub metrics: Arc<dyn MetricsText>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The audit trail.
    pub auditor: Auditor,
    /// Built-in bounds of other parts, for `GET /v1/limits`; this transport's own are added.
    pub limits: Vec<Limit>,
}

/// The bounds of this transport that cannot be changed.
pub const LIMITS: &[Limit] = &[
    Limit {
        name: "http.header_max_bytes",
        value: crate::server::HEADER_MAX_BYTES as u64,
        meaning: "A request's head; beyond it 431 header_too_large.",
    },
    Limit {
        name: "http.header_max_count",
        value: crate::server::HEADER_MAX_COUNT as u64,
        meaning: "Header fields of a request; beyond it 431.",
    },
    Limit {
        name: "http.token_max_bytes",
        value: crate::auth::TOKEN_MAX_BYTES as u64,
        meaning: "A bearer token; a longer one is 401 token_malformed.",
    },
    Limit {
        name: "http.h2_streams_max",
        value: crate::server::H2_STREAMS_MAX as u64,
        meaning: "Requests at one time on one HTTP/2 connection; beyond it the client must wait.",
    },
    Limit {
        name: "http.write_buffer_max_bytes",
        value: crate::server::WRITE_BUFFER_MAX_BYTES as u64,
        meaning: "Bytes that wait for one slow reader beyond the chunk being sent; then its source waits.",
    },
    Limit {
        name: "http.tls_handshake_max_ms",
        value: crate::server::TLS_HANDSHAKE_MAX.as_millis() as u64,
        meaning: "A TLS handshake must be done in this time; beyond it the connection is closed.",
    },
    Limit {
        name: "http.page_max",
        value: crate::route::PAGE_MAX,
        meaning: "Streams or groups in one answer of a list; a greater limit in a request is 400 invalid_field.",
    },
    Limit {
        name: "http.checkpoint_page_max",
        value: crate::checkpoint::PAGE_MAX,
        meaning: "Jobs or checkpoints in one answer of a list; a greater limit in a request is 400 invalid_field.",
    },
    Limit {
        name: "http.checkpoint_page_max_bytes",
        value: crate::checkpoint::PAGE_MAX_BYTES as u64,
        meaning: "A list of jobs or checkpoints ends early with so many bytes; one checkpoint alone may have more.",
    },
    Limit {
        name: "http.record_depth_max",
        value: crate::record::DEPTH_MAX as u64,
        meaning: "How deep the JSON of a record's fields may be nested; beyond it 400 invalid_field.",
    },
    Limit {
        name: "http.group_client_max_bytes",
        value: crate::route::CLIENT_MAX_BYTES as u64,
        meaning: "What a member of a group calls itself; beyond it 400 invalid_field.",
    },
    Limit {
        name: "http.presigned_max_s",
        value: crate::auth::PRESIGNED_MAX_S,
        meaning: "How far ahead a signed address may be good; beyond it 403 presigned_too_long.",
    },
    Limit {
        name: "http.heartbeat_ms",
        value: crate::route::HEARTBEAT.as_millis() as u64,
        meaning: "An event stream without events is sent a comment this often.",
    },
    Limit {
        name: "http.ingest_open_max_bytes",
        value: crate::route::OPEN_MAX_BYTES as u64,
        meaning: "The first line of an upload; beyond it 400 invalid_field.",
    },
    Limit {
        name: "http.ingest_chunk_max_bytes",
        value: crate::route::CHUNK_MAX_BYTES as u64,
        meaning: "A chunk of an upload is committed when it has so many bytes, or stream.chunk.max_rows rows.",
    },
    Limit {
        name: "http.batch_part_max_count",
        value: crate::route::object::PART_MAX_COUNT as u64,
        meaning: "Parts of one batch of objects; beyond it the reply ends with 413 too_many_parts.",
    },
    Limit {
        name: "http.batch_part_head_max_bytes",
        value: crate::multipart::HEAD_MAX_BYTES as u64,
        meaning: "The head of a part of a batch; beyond it that part fails with 413 part_head_too_large.",
    },
    Limit {
        name: "http.batch_body_max_bytes",
        value: crate::route::object::BODY_MAX_BYTES,
        meaning: "The body of a batch; beyond it 413 body_too_large.",
    },
    Limit {
        name: "http.object_min_bytes_per_second",
        value: crate::route::object::MIN_BYTES_A_SECOND,
        meaning: "How fast the bytes of objects and batches must come beyond twice limits.body_timeout_ms, on the average; slower is 408 body_too_slow.",
    },
    Limit {
        name: "http.batch_permits",
        value: crate::route::object::EXECUTOR.permits as u64,
        meaning: "Operations of all batches at one time; with none free a batch is 429 batch_capacity_exhausted.",
    },
    Limit {
        name: "http.batch_window_percent",
        value: crate::route::object::EXECUTOR.window_percent as u64,
        meaning: "What share of the free permits one batch reserves, rounded up.",
    },
    Limit {
        name: "http.batch_bytes_in_flight",
        value: crate::route::object::EXECUTOR.bytes_in_flight,
        meaning: "Bytes that the inserts of all batches hold while they run; beyond it they wait.",
    },
];
