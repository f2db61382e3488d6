//! Runs the operations of a batch on the objects, and says what came of each. A get is answered when its first block is there: an object
//! that cannot be read from its beginning is a problem document, not a connection that breaks.

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use http::StatusCode;
use tidegate_batch::service::{Get, Got, ObjectBytes, Put, Written};
use tidegate_batch::{Collection, Condition, ObjectInfo, ObjectService, Operate, Operation};

use super::super::problem::{get_problem, put_problem, store_problem};
use crate::problem::Problem;

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
        /// `None` = nothing follows.
        rest: Option<ObjectBytes>,
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
                    Got::Object(object) => match object.body.at_hand() {
                        Ok(first) => Ok(Done::Got { info: object.info, first, rest: None }),
                        Err(mut rest) => {
                            let first = rest.next().await.transpose().map_err(get_problem)?.unwrap_or_default();
                            Ok(Done::Got { info: object.info, first, rest: Some(rest) })
                        }
                    },
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

    /// A small object that was read or written lately is in memory, and so is what is known of it.
    fn is_at_hand(&self, operation: &Operation) -> bool {
        matches!(operation, Operation::Get { .. } | Operation::Head { .. })
    }

    fn is_overload(&self, error: &Box<Problem>) -> bool {
        error.status() == StatusCode::SERVICE_UNAVAILABLE
    }
}
