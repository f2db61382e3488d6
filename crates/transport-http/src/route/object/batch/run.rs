//! Runs the operations of a batch on the objects, and says what came of each. A get is answered when its first block is there: an object
//! that cannot be read from its beginning is a problem document, not a connection that breaks.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tidegate_batch::error::{GetError, PutError};
use tidegate_batch::service::{Get, Got, Put, Written};
use tidegate_batch::{Collection, Condition, ItemError, ObjectInfo, ObjectService, Operate, Operation};

use super::super::answer::describe;
use super::super::metadata::CUSTOM;
use super::super::problem::{get_problem, put_problem, store_problem};
use super::part::{KEY, OP, Tag, encoded};
use super::reply::{Content, Reply};
use crate::problem::{PROBLEM_JSON, Problem};

const INDEX: HeaderName = HeaderName::from_static("x-tidegate-index");
pub(super) const STATUS: HeaderName = HeaderName::from_static("x-tidegate-status");
/// An object's length, where its bytes do not follow.
const LENGTH: HeaderName = HeaderName::from_static("x-tidegate-length");

/// The objects of one collection.
pub(super) struct Objects {
    service: ObjectService,
    collection: Collection,
}

impl Objects {
    pub(super) fn new(service: ObjectService, collection: Collection) -> Self {
        Self { service, collection }
    }
}

/// What came of an operation.
pub(super) enum Done {
    Written(Written),
    Got {
        info: ObjectInfo,
        /// The first block, or all there is.
        first: Bytes,
        rest: BoxStream<'static, Result<Bytes, GetError>>,
    },
    Known(ObjectInfo),
    Deleted,
}

impl Operate<Operation> for Objects {
    type Output = Done;
    type Error = Box<Problem>;

    async fn operate(&self, operation: Operation) -> Result<Done, Box<Problem>> {
        let (objects, collection) = (&self.service, &self.collection);
        match operation {
            Operation::Insert { key, metadata, payload } => {
                let key = match key {
                    Some(key) => key,
                    None => objects.make_key().map_err(|error| store_problem(&error))?,
                };
                let put = Put { metadata, ..Put::default() };
                let body = stream::iter((!payload.is_empty()).then_some(Ok(payload))).boxed();
                Ok(Done::Written(objects.put(collection, &key, put, body).await.map_err(put_problem)?))
            }
            Operation::Get { key } => {
                match objects.get(collection, &key, &Get::default()).await.map_err(get_problem)? {
                    Got::NotModified(info) => Ok(Done::Known(info)),
                    Got::Object(object) => {
                        let mut rest = object.body;
                        let first = rest.next().await.transpose().map_err(get_problem)?.unwrap_or_default();
                        Ok(Done::Got { info: object.info, first, rest })
                    }
                }
            }
            Operation::Head { key } => {
                match objects.head(collection, &key, &Condition::default()).await.map_err(get_problem)? {
                    Got::NotModified(info) => Ok(Done::Known(info)),
                    Got::Object(object) => Ok(Done::Known(object.info)),
                }
            }
            Operation::Delete { key } => {
                objects.delete(collection, &key, &Condition::default()).await.map_err(put_problem)?;
                Ok(Done::Deleted)
            }
        }
    }

    fn is_overload(&self, error: &Box<Problem>) -> bool {
        error.status() == StatusCode::SERVICE_UNAVAILABLE
    }
}

/// The reply to one part.
pub(super) fn reply_to(tag: Tag, result: Result<Done, ItemError<Box<Problem>, Problem>>) -> Reply {
    let Tag { index, kind, key, place } = tag;
    let mut head = match &result {
        Ok(Done::Written(written)) => of_a_write(&written.info),
        Ok(Done::Got { info, .. } | Done::Known(info)) => of_an_object(info),
        _ => HeaderMap::new(),
    };
    head.insert(INDEX, HeaderValue::from(index));
    if let Some(kind) = kind {
        head.insert(OP, HeaderValue::from_static(kind.as_str()));
    }
    if let Some(key) = key {
        head.insert(KEY, key);
    }
    match result {
        Ok(Done::Written(written)) => {
            head.insert(KEY, encoded(&written.info.key));
            status(&mut head, if written.created { StatusCode::CREATED } else { StatusCode::OK });
            Reply::Part { head, content: Content::Whole(Bytes::new()) }
        }
        Ok(Done::Known(info)) => {
            status(&mut head, StatusCode::OK);
            head.insert(LENGTH, HeaderValue::from(info.length));
            Reply::Part { head, content: Content::Whole(Bytes::new()) }
        }
        Ok(Done::Got { info, first, rest }) => {
            status(&mut head, StatusCode::OK);
            head.insert(header::CONTENT_LENGTH, HeaderValue::from(info.length));
            Reply::Part { head, content: Content::Stream { first, rest, left: info.length, place } }
        }
        Ok(Done::Deleted) => {
            status(&mut head, StatusCode::NO_CONTENT);
            Reply::Part { head, content: Content::Whole(Bytes::new()) }
        }
        Err(ItemError::Input(problem)) => Reply::problem(head, &problem),
        Err(ItemError::Failed(problem)) => Reply::problem(head, &problem),
        Err(ItemError::Panicked) => Reply::problem(head, &of_the_executor(ItemError::Panicked)),
        Err(ItemError::TooLarge { weight_bytes, max_bytes }) => {
            let error = ItemError::TooLarge { weight_bytes, max_bytes };
            Reply::problem(head, &of_the_executor(error).with("max_bytes", max_bytes))
        }
        Err(ItemError::Nested(error)) => Reply::problem(head, &Problem::of(&error)),
        Err(_) => Reply::problem(head, &of_the_executor(ItemError::Cancelled)),
    }
}

fn of_the_executor(error: ItemError<PutError, PutError>) -> Problem {
    Problem::of(&error)
}

pub(super) fn status(head: &mut HeaderMap, status: StatusCode) {
    head.insert(STATUS, HeaderValue::from(status.as_u16()));
}

/// What is known of an object, as far as it makes sense in a part of an answer.
fn of_an_object(info: &ObjectInfo) -> HeaderMap {
    let mut head = HeaderMap::with_capacity(20);
    describe(&mut head, info);
    head.remove(header::CACHE_CONTROL);
    head.remove(header::ACCEPT_RANGES);
    head
}

/// What a write is answered with: not what its writer has just said.
fn of_a_write(info: &ObjectInfo) -> HeaderMap {
    let told = |name: &HeaderName| {
        let ours = name.as_str().starts_with("x-tidegate-") && !name.as_str().starts_with(CUSTOM);
        ours || [header::ETAG, header::LAST_MODIFIED].contains(name)
    };
    of_an_object(info).into_iter().filter_map(|(name, value)| Some((name.filter(told)?, value))).collect()
}

impl Reply {
    /// A problem document.
    pub(super) fn problem(mut head: HeaderMap, problem: &Problem) -> Self {
        let document = problem.document();
        status(&mut head, problem.status());
        head.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        head.insert(header::CONTENT_LENGTH, HeaderValue::from(document.len()));
        Self::Part { head, content: Content::Whole(document.into()) }
    }
}
