//! How failures of change streams look over HTTP: their codes, with the bounds and offsets that a client acts on as members. It
//! decides nothing; the causes stay in the log.

use http::{HeaderName, HeaderValue};
use tidegate_cdc::group::GroupError;
use tidegate_cdc::record::gap_reason;
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

pub(super) fn group_problem(error: &GroupError) -> Problem {
    log_fault(error);
    let problem = Problem::of(error);
    match error {
        GroupError::Exists { difference, .. } => problem.with("difference", difference.to_string()),
        GroupError::Fenced { generation } => problem.with("generation", *generation),
        GroupError::UnknownMember { member } => problem.with("member", member.to_string()),
        GroupError::Regression { partition, committed, given } => {
            problem.with("partition", partition.0).with("committed", committed.0).with("given", given.0)
        }
        GroupError::BeyondDelivered { partition, delivered, given } => {
            problem.with("partition", partition.0).with("delivered", delivered.0).with("given", given.0)
        }
        GroupError::Gap { gap } => problem.with(
            "gap",
            serde_json::json!({
                "partition": gap.partition.0,
                "from": gap.from.0,
                "to": gap.to.0,
                "reason": gap_reason(gap.reason),
            }),
        ),
        GroupError::Quota { limit, current } | GroupError::MemberQuota { limit, current } => {
            problem.with("limit", *limit).with("current", *current)
        }
        GroupError::InvalidSpec { field, given, min, max } => {
            problem.with("field", *field).with("given", *given).with("min", *min).with("max", *max)
        }
        GroupError::DeadLetterOfOrdered | GroupError::DeadLetterIsSource => problem.with("field", "dead_letter"),
        GroupError::Invalid { field, given, limit } => {
            problem.with("field", *field).with("given", *given).with("limit", *limit)
        }
        GroupError::OutOfRange { partition, asked, next, earliest } => problem
            .with("partition", partition.0)
            .with("asked", asked.0)
            .with("next", next.0)
            .with("earliest", earliest.0),
        GroupError::Capacity(error) => problem.with("limit", error.limit).with("current", error.current),
        GroupError::Stream(error) => with_stream(problem, error),
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
