//! How refusals of the protocol look: problem documents, with the headers that its clients act on.

use http::StatusCode;
use tidegate_cdc::PublishError;
use tidegate_cdc::durable::DurableError;
use tidegate_cdc::record::gap_reason;

use super::super::change_problem::{create_problem, log_fault, publish_problem, read_problem, stream_problem};
use super::{STREAM_CLOSED, STREAM_NEXT_OFFSET, TRUE, request};
use crate::body::BodyError;
use crate::problem::Problem;

pub(super) fn durable_problem(error: &DurableError) -> Problem {
    match error {
        DurableError::Create(error) => create_problem(error),
        DurableError::Publish(error @ PublishError::Closed { tail }) => publish_problem(error)
            .with_header(STREAM_CLOSED, TRUE)
            .with_header(STREAM_NEXT_OFFSET, request::offset_value(*tail)),
        DurableError::Publish(error) => publish_problem(error),
        DurableError::Read(error) => read_problem(error),
        DurableError::Stream(error) => stream_problem(error),
        other => {
            log_fault(other);
            let problem = Problem::of(other);
            match other {
                DurableError::Exists { difference, .. } => problem.with("difference", *difference),
                DurableError::Partitioned { partitions, .. } => problem.with("partitions", *partitions),
                DurableError::ForkOffset { asked, next } => problem.with("asked", asked.0).with("next", next.0),
                DurableError::ForkSubOffset { asked, available } => {
                    problem.with("asked", *asked).with("available", *available)
                }
                DurableError::ForkDepth { limit } => problem.with("limit", *limit),
                DurableError::Gap { gap } => problem
                    .with("from", gap.from.0)
                    .with("to", gap.to.0)
                    .with("reason", gap_reason(gap.reason))
                    .with_header(STREAM_NEXT_OFFSET, request::offset_value(gap.to)),
                _ => problem,
            }
        }
    }
}

/// A body beyond the bound is a batch beyond it.
pub(super) fn body_problem(error: BodyError) -> Problem {
    match error {
        BodyError::TooLarge { limit_bytes } => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "batch_too_large",
            format!("the body has more than {limit_bytes} bytes (limits.batch_max_bytes); nothing was appended"),
        )
        .with("max_bytes", limit_bytes),
        other => other.into(),
    }
}
