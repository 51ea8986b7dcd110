//! Unfinished uploads of nodes that are gone for good: S3 keeps, and bills, their parts until somebody gives them up.

use std::time::Duration;

use super::client::{Failure, within};
use super::{Bucket, LIST_LIMIT, PREFIX, RETRY_PAUSE, name};
use crate::catalog::{rfc3339, unix_now};

/// Uploads in parts that nobody has ended for so long have no one who will.
const ABANDONED: i64 = 7 * 24 * 3600;
const PAUSE: Duration = Duration::from_secs(24 * 3600);

impl Bucket {
    /// Gives up, once a day, the unfinished uploads of nodes that are gone for good.
    pub(super) async fn clean(&self) {
        loop {
            let pause = match self.clean_once().await {
                Ok(()) => PAUSE,
                Err(failure) => {
                    tracing::debug!(%failure, "unfinished uploads are not looked for");
                    RETRY_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn clean_once(&self) -> Result<(), Failure> {
        if !self.breaker.is_closed() {
            return Err(Failure::Unreachable("it is away".to_owned()));
        }
        let unfinished = match within(LIST_LIMIT, self.client.unfinished(PREFIX)).await {
            // Some services cannot list them.
            Err(Failure::Refused { .. }) => return Ok(()),
            other => other?,
        };
        let abandoned = rfc3339(unix_now() - ABANDONED);
        for upload in unfinished {
            // Both are RFC 3339 in UTC, so their texts are in the order of time.
            if !upload.initiated.is_empty() && upload.initiated < abandoned {
                tracing::info!(
                    object = name::shown(&upload.object),
                    "an upload that was never finished is removed"
                );
                within(LIST_LIMIT, self.client.abort(&upload.object, &upload.upload)).await?;
            }
        }
        Ok(())
    }
}
