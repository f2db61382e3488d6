//! What a source is doing, for those who ask. It asks the server, and never waits for the stream.

use tidegate_core::port::{ChangeSourceError, ChangeSourceStatus};

use super::Shared;
use super::lsn::Lsn;
use super::refusal::{driver, unreadable};
use super::server::get;
use crate::session::Link;

/// What the server keeps for a slot: all that it wrote since the slot was confirmed.
const STATUS: &str = "\
select pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text,
  (select pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), s.confirmed_flush_lsn)::pg_catalog.int8
   from pg_catalog.pg_replication_slots s where s.slot_name = $1)";

/// Asks the server, on a connection that is kept for the next time.
pub(crate) async fn ask(shared: &Shared) -> Result<ChangeSourceStatus, ChangeSourceError> {
    let mut kept = shared.status_link.lock().await;
    let work = async {
        let link = match kept.take().filter(|link: &Link| !link.client.is_closed()) {
            Some(link) => link,
            None => shared.server.link().await?,
        };
        let row = link.client.query_one(STATUS, &[&&*shared.server.change.slot]).await.map_err(driver)?;
        let position = Lsn::parse(get(&row, 0)?).ok_or_else(|| unreadable("the server's position cannot be read"))?;
        let lag: Option<i64> = get(&row, 1)?;
        Ok((link, position, lag))
    };
    let (link, position, lag) = shared.server.in_time(work).await?;
    *kept = Some(link);
    let lag_bytes = u64::try_from(lag.unwrap_or(0)).unwrap_or(0);
    Ok(ChangeSourceStatus { position: position.position(), lag_bytes, copy: shared.copy.lock().clone() })
}
