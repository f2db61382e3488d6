//! How failures of change streams look over HTTP: their codes, with the bounds and offsets that a client acts on as members. It
//! decides nothing; the causes stay in the log.

use http::{HeaderName, HeaderValue};
use tidegate_cdc::{CreateError, PublishError, ReadError, StoreError, StreamError};
use tidegate_core::{ErrorKind, Failure};

use crate::gate::json_problem;
use crate::problem::Problem;
use crate::record::RecordError;

const PRODUCER_EPOCH: HeaderName = HeaderName::from_static("producer-epoch");
const PRODUCER_EXPECTED_SEQ: HeaderName = HeaderName::from_static("producer-expected-seq");
const PRODUCER_RECEIVED_SEQ: HeaderName = HeaderName::from_static("producer-received-seq");

pub(super) fn stream_problem(error: &StreamError) -> Problem {
    log_fault(error);
    with_stream(Problem::of(error), error)
}

fn with_stream(problem: Problem, error: &StreamError) -> Problem {
    match error {
        StreamError::PartitionNotFound { partition, partitions, .. } => {
            problem.with("partition", partition.0).with("partitions", *partitions)
        }
        StreamError::Store(StoreError::TooLarge { limit_bytes, .. }) => problem.with("max_bytes", *limit_bytes),
        _ => problem,
    }
}

pub(super) fn create_problem(error: &CreateError) -> Problem {
    log_fault(error);
    let problem = Problem::of(error);
    match error {
        CreateError::Exists { difference, .. } => problem.with("difference", difference.to_string()),
        CreateError::Partitions { given, limit } => {
            problem.with("field", "partitions").with("limit", *limit).with("current", *given)
        }
        CreateError::Retention { field } => problem.with("field", format!("retention.{field}")),
        CreateError::Description { limit_bytes, .. } => {
            problem.with("field", "description").with("max_bytes", *limit_bytes)
        }
        CreateError::Quota { limit, current } => problem.with("limit", *limit).with("current", *current),
        CreateError::Stream(error) => with_stream(problem, error),
        _ => problem,
    }
}

pub(super) fn publish_problem(error: &PublishError) -> Problem {
    log_fault(error);
    let problem = Problem::of(error);
    match error {
        PublishError::RecordTooLarge { index, bytes, limit_bytes } => {
            problem.with("index", *index).with("bytes", *bytes).with("max_bytes", *limit_bytes)
        }
        PublishError::TooManyRecords { records, limit } => problem.with("limit", *limit).with("current", *records),
        PublishError::TooManyBytes { limit_bytes, .. } => problem.with("max_bytes", *limit_bytes),
        PublishError::ProducerFenced { epoch, current } => problem
            .with("epoch", *epoch)
            .with("current_epoch", *current)
            .with_header(PRODUCER_EPOCH, HeaderValue::from(*current)),
        PublishError::ProducerGap { expected, received } => problem
            .with("expected", *expected)
            .with("received", *received)
            .with_header(PRODUCER_EXPECTED_SEQ, HeaderValue::from(*expected))
            .with_header(PRODUCER_RECEIVED_SEQ, HeaderValue::from(*received)),
        PublishError::Stream(error) => with_stream(problem, error),
        _ => problem,
    }
}

pub(super) fn read_problem(error: &ReadError) -> Problem {
    log_fault(error);
    let problem = Problem::of(error);
    match error {
        ReadError::OutOfRange { partition, asked, next, earliest } => problem
            .with("partition", partition.0)
            .with("asked", asked.0)
            .with("next", next.0)
            .with("earliest", earliest.0),
        ReadError::Capacity(error) => problem.with("limit", error.limit).with("current", error.current),
        ReadError::Stream(error) => with_stream(problem, error),
        _ => problem,
    }
}

pub(super) fn record_problem(error: &RecordError) -> Problem {
    let mut problem = json_problem(&error.error);
    if let Some(line) = error.line {
        problem = problem.with("line", line);
    }
    problem.with("index", error.index)
}

/// The causes stay here: they may name hosts and files.
pub(super) fn log_fault(error: &(impl Failure + 'static)) {
    if !matches!(error.kind(), ErrorKind::Internal | ErrorKind::Unavailable | ErrorKind::Timeout) {
        return;
    }
    let mut causes = String::new();
    let mut cause = error.source();
    while let Some(next) = cause {
        causes.push_str(": ");
        causes.push_str(&next.to_string());
        cause = next.source();
    }
    tracing::warn!(code = error.code(), "{error}{causes}");
}
