//! Asking the service, unless it is away.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Bucket;
use super::client::Failure;
use super::health::Blame;
use crate::breaker::Away;

impl Bucket {
    /// Asks, on the runtime of the connections, unless the service is away. A failure that is the service's opens the
    /// breaker.
    pub(super) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        limit: Duration,
        asked: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Away> {
        let bucket = Arc::clone(self);
        let answer = Task(self.runtime.spawn(async move {
            let call = async {
                match asked.await {
                    Ok(answer) => Ok(Ok(answer)),
                    Err(failure) => match bucket.blame(failure).await {
                        Blame::Service(failure) => Err(failure),
                        Blame::Question(failure) => Ok(Err(failure)),
                    },
                }
            };
            bucket.breaker.call(limit, call).await
        }));
        let failed = |why: String| Away::Failed(self.breaker.name(), why);
        match answer.await {
            Some(answer) => answer?.map_err(|failure| failed(failure.to_string())),
            None => Err(failed("the process is stopping".to_owned())),
        }
    }
}

/// A task on another runtime that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Future for Task<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
        Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
