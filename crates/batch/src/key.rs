//! Keys in the metadata store. Names, scopes and keys have no control characters, so a zero byte separates them without escaping.

use bytes::{BufMut, Bytes, BytesMut};
use tidegate_core::id::Name;

use crate::object::{Collection, ObjectKey};
use crate::stored::{BlobId, UploadId};

const HEAD: u8 = b'h';
const BODY: u8 = b'b';
const INTENT: u8 = b'i';
const UPLOAD: u8 = b'u';
const PART: u8 = b'p';
const COMPLETED: u8 = b'c';

fn begin(kind: u8) -> BytesMut {
    let mut key = BytesMut::with_capacity(128);
    key.put_slice(&[b'o', kind, 0]);
    key
}

fn within(kind: u8, collection: &Collection) -> BytesMut {
    let mut key = begin(kind);
    for part in [collection.tenant.as_str(), collection.usecase.as_str(), collection.scopes.as_str()] {
        key.put_slice(part.as_bytes());
        key.put_u8(0);
    }
    key
}

fn of(kind: u8, collection: &Collection, object: &ObjectKey) -> Bytes {
    let mut key = within(kind, collection);
    key.put_slice(object.as_str().as_bytes());
    key.freeze()
}

/// What is known of an object.
pub(crate) fn head(collection: &Collection, object: &ObjectKey) -> Bytes {
    of(HEAD, collection, object)
}

/// A small object's bytes.
pub(crate) fn body(collection: &Collection, object: &ObjectKey) -> Bytes {
    of(BODY, collection, object)
}

/// The bytes' key of the object whose head lies under this one.
pub(crate) fn body_of(head: &[u8]) -> Bytes {
    let mut key = BytesMut::from(head);
    if let Some(kind) = key.get_mut(1) {
        *kind = BODY;
    }
    key.freeze()
}

/// What the heads of a collection's objects begin with.
pub(crate) fn heads(collection: &Collection) -> BytesMut {
    within(HEAD, collection)
}

/// What all heads begin with.
pub(crate) fn all_heads() -> Bytes {
    begin(HEAD).freeze()
}

/// A blob's intent.
pub(crate) fn intent(blob: BlobId) -> Bytes {
    let mut key = begin(INTENT);
    key.put_slice(&blob.0);
    key.freeze()
}

/// What all intents begin with.
pub(crate) fn intents() -> Bytes {
    begin(INTENT).freeze()
}

/// The blob of an intent's key.
pub(crate) fn blob_of(intent: &[u8]) -> Option<BlobId> {
    intent.strip_prefix(intents().as_ref())?.try_into().ok().map(BlobId)
}

/// What a tenant's uploads begin with.
pub(crate) fn uploads_of(tenant: &Name) -> BytesMut {
    let mut key = begin(UPLOAD);
    key.put_slice(tenant.as_str().as_bytes());
    key.put_u8(0);
    key
}

/// The place of an upload. A tenant has as many as it may have uploads open, so that the bound cannot be passed.
pub(crate) fn upload(tenant: &Name, upload: UploadId) -> Bytes {
    let mut key = uploads_of(tenant);
    key.put_slice(&upload.place().to_be_bytes());
    key.freeze()
}

/// What all uploads begin with.
pub(crate) fn uploads() -> Bytes {
    begin(UPLOAD).freeze()
}

/// The place of an upload's key.
pub(crate) fn upload_place(key: &[u8]) -> Option<u16> {
    key.last_chunk().map(|place| u16::from_be_bytes(*place))
}

/// What an upload's completion was answered.
pub(crate) fn completed(upload: UploadId) -> Bytes {
    let mut key = begin(COMPLETED);
    key.put_slice(&upload.0);
    key.freeze()
}

/// What all of those begin with.
pub(crate) fn all_completed() -> Bytes {
    begin(COMPLETED).freeze()
}

/// What the parts of an upload begin with.
pub(crate) fn parts(upload: UploadId) -> BytesMut {
    let mut key = begin(PART);
    key.put_slice(&upload.0);
    key
}

/// A part of an upload.
pub(crate) fn part(upload: UploadId, number: u32) -> Bytes {
    let mut key = parts(upload);
    key.put_u32(number);
    key.freeze()
}

/// The number of a part's key.
pub(crate) fn part_number(key: &[u8]) -> Option<u32> {
    key.last_chunk().map(|number| u32::from_be_bytes(*number))
}

/// The secret that upload ids are proven with.
pub(crate) fn secret() -> Bytes {
    Bytes::from_static(b"os\0")
}
