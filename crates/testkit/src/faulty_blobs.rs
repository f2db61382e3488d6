//! A blob store around another one that fails, is full, stands still and breaks off as a test tells it. It never makes up data: what it
//! gives without an error comes from the store inside.

mod plan;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};

pub use plan::{BlobCall, BlobPlan};

use crate::faulty_store::{Fault, Injected};

/// An [`ObjectStore`] around another one, with faults by plan. Without a plan it does what the store inside does.
#[derive(Debug)]
pub struct FaultyBlobs<S: ?Sized> {
    inner: Arc<S>,
    plan: BlobPlan,
}

impl<S: ?Sized> FaultyBlobs<S> {
    /// A store without faults at first.
    pub fn new(inner: Arc<S>) -> Arc<Self> {
        Arc::new(Self { inner, plan: BlobPlan::default() })
    }

    /// The handle on what goes wrong.
    pub fn plan(&self) -> &BlobPlan {
        &self.plan
    }

    /// The store inside: what is done to it is done behind the back of who uses this one.
    pub fn inner(&self) -> &Arc<S> {
        &self.inner
    }
}

/// One call: waits while it is held, fails as planned, or happens.
async fn call<T: Send>(
    plan: &BlobPlan,
    call: BlobCall,
    happen: impl Future<Output = object_store::Result<T>> + Send,
) -> object_store::Result<T> {
    plan.pass(call).await;
    match plan.draw(call) {
        None => happen.await,
        Some(fault @ Fault::Indeterminate { applied: true }) => happen.await.and(Err(error_of(fault))),
        Some(fault) => Err(error_of(fault)),
    }
}

/// What a store of that kind would say.
fn error_of(fault: Fault) -> Error {
    let source = match fault {
        Fault::Full => io::Error::new(io::ErrorKind::StorageFull, Injected { fault }),
        _ => io::Error::other(Injected { fault }),
    };
    Error::Generic { store: "faulty", source: source.into() }
}

impl<S: ObjectStore + ?Sized> fmt::Display for FaultyBlobs<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyBlobs({})", self.inner)
    }
}

#[async_trait]
impl<S: ObjectStore + ?Sized> ObjectStore for FaultyBlobs<S> {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        call(&self.plan, BlobCall::Put, self.inner.put_opts(at, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let upload = call(&self.plan, BlobCall::Begin, self.inner.put_multipart_opts(at, options)).await?;
        Ok(Box::new(FaultyUpload { upload, plan: self.plan.clone() }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let found = call(&self.plan, BlobCall::Get, self.inner.get_opts(at, options)).await?;
        let Some(cut) = self.plan.cut() else { return Ok(found) };
        let GetResult { meta, range, attributes, extensions, .. } = &found;
        let (meta, range, attributes, extensions) =
            (meta.clone(), range.clone(), attributes.clone(), extensions.clone());
        let bytes = broken_off(found.into_stream(), cut, self.plan.clone());
        Ok(GetResult { payload: GetResultPayload::Stream(bytes), meta, range, attributes, extensions })
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        call(&self.plan, BlobCall::Get, self.inner.get_ranges(at, ranges)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (inner, plan) = (Arc::clone(&self.inner), self.plan.clone());
        locations
            .then(move |at| {
                let (inner, plan) = (Arc::clone(&inner), plan.clone());
                async move {
                    let at = at?;
                    let mut one = inner.delete_stream(futures::stream::iter([Ok(at.clone())]).boxed());
                    let delete = async move { one.next().await.unwrap_or(Ok(at)) };
                    call(&plan, BlobCall::Delete, delete).await
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.plan.draw(BlobCall::List) {
            None => self.inner.list(prefix),
            Some(fault) => futures::stream::iter([Err(error_of(fault))]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        call(&self.plan, BlobCall::List, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        call(&self.plan, BlobCall::Put, self.inner.copy_opts(from, to, options)).await
    }
}

/// Gives so many bytes, then an error.
fn broken_off(
    bytes: BoxStream<'static, object_store::Result<Bytes>>,
    after: u64,
    plan: BlobPlan,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    bytes
        .scan(Some(after), move |left, bytes| {
            let next = left.take().map(|room| match bytes {
                Ok(bytes) if bytes.len() as u64 <= room => {
                    *left = Some(room - bytes.len() as u64);
                    Ok(bytes)
                }
                Ok(_) => {
                    plan.count();
                    Err(error_of(Fault::Unavailable))
                }
                Err(error) => Err(error),
            });
            std::future::ready(next)
        })
        .boxed()
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn MultipartUpload>,
    plan: BlobPlan,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let part = self.upload.put_part(payload);
        let plan = self.plan.clone();
        Box::pin(async move { call(&plan, BlobCall::Part, part).await })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        call(&self.plan, BlobCall::Complete, self.upload.complete()).await
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        call(&self.plan, BlobCall::Abort, self.upload.abort()).await
    }
}
