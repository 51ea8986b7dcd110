//! A client's connection over HTTP/1.1 as Pingora sees it: the one request that [`super::front`] has read, its body, and
//! then nothing until the next one's turn. Whatever else arrives waits here, and nothing is waited for without a limit.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::chunks::{Chunks, Malformed};
use super::transport::Transport;
use super::wire::{Framing, Head};
use crate::config::ClientSettings;

/// What is read at once, and read ahead while a request is being answered.
pub(super) const READ: usize = 4 << 10;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The connection, and what of it may be read.
pub(super) struct Gate {
    pub stream: Transport,
    /// Read and not handed on. Its beginning is this request's for as long as `open` says, then its body's, then the
    /// next request's.
    pub received: BytesMut,
    pub limits: ClientSettings,
    /// Of `received`, what may be handed on.
    open: usize,
    body: Body,
    /// When the body must have gone on.
    until: Instant,
    /// What is left to write of `100 Continue`, before the body is waited for; then it is flushed.
    word: Option<&'static [u8]>,
    failed: Option<io::ErrorKind>,
    reading: Patience,
    writing: Patience,
}

enum Body {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Chunks),
}

impl Gate {
    pub(super) fn new(stream: Transport, limits: ClientSettings) -> Box<Self> {
        Box::new(Gate {
            stream,
            received: BytesMut::with_capacity(READ),
            limits,
            open: 0,
            body: Body::Length(0),
            until: Instant::now(),
            word: None,
            failed: None,
            reading: Patience::default(),
            writing: Patience::default(),
        })
    }

    /// Lets the request pass whose `head` stands at the beginning of what was received.
    pub(super) fn open(&mut self, head: &Head) {
        self.open = head.length;
        self.body = match head.body {
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunks::default()),
        };
        self.until = Instant::now() + self.limits.body_timeout;
        self.word = head.expects_continue.then_some(CONTINUE);
        self.reading.rest();
    }

    /// Whether the request was read to its end, so that the next one may be.
    pub(super) fn is_between_requests(&self) -> bool {
        self.open == 0 && self.is_at_end() && self.failed.is_none()
    }

    fn is_at_end(&self) -> bool {
        match &self.body {
            Body::Length(left) => *left == 0,
            Body::Chunked(chunks) => chunks.are_done(),
        }
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.received.reserve(READ);
        pin!(self.stream.read_buf(&mut self.received)).poll(cx)
    }

    /// Finds out what of the bytes received is the body's.
    fn admit(&mut self) -> io::Result<()> {
        self.open = match &mut self.body {
            Body::Length(left) => {
                let here = (*left).min(self.received.len() as u64);
                *left -= here;
                here as usize
            }
            Body::Chunked(chunks) => match chunks.take(&self.received) {
                Ok(here) => here,
                Err(Malformed) => return Err(io::ErrorKind::InvalidData.into()),
            },
        };
        Ok(())
    }

    /// Waits for more of the body, for as long as it may take.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.received.is_empty() {
            ready!(self.poll_word(cx))?;
            match self.poll_more(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(read) => {
                    self.until = self.limits.body_until(self.until, read?);
                    self.reading.rest();
                }
                Poll::Pending => {
                    let left = self.until.saturating_duration_since(Instant::now());
                    ready!(self.reading.poll(cx, left));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        Poll::Ready(self.admit())
    }

    /// Nothing more is this request's. The client may still leave, or send the next one, of which a little is taken.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.received.len() < READ {
            if ready!(self.poll_more(cx))? == 0 {
                // Requests that were sent before the end are answered yet.
                return match self.received.is_empty() {
                    true => Poll::Ready(Ok(())),
                    false => Poll::Pending,
                };
            }
        }
        Poll::Pending
    }

    /// Says that the body may come.
    fn poll_word(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(word) = self.word {
            if word.is_empty() {
                ready!(self.poll_patiently(cx, |stream, cx| stream.poll_flush(cx)))?;
                self.word = None;
            } else {
                let written = ready!(self.poll_patiently(cx, |stream, cx| stream.poll_write(cx, word)))?;
                self.word = Some(&word[written..]);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// An answer begins: that the body may come is said to its end or not at all.
    fn poll_before_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.word == Some(CONTINUE) {
            self.word = None;
        }
        self.poll_word(cx)
    }

    /// Gives up a client that takes nothing for too long.
    fn poll_patiently<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut Transport>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = poll(Pin::new(&mut self.stream), cx) {
            self.writing.rest();
            return Poll::Ready(result);
        }
        ready!(self.writing.poll(cx, self.limits.write_timeout));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Gate {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = &mut *self;
        if let Some(kind) = gate.failed {
            return Poll::Ready(Err(kind.into()));
        }
        if gate.open == 0 {
            if gate.is_at_end() {
                return gate.poll_idle(cx);
            }
            if let Err(error) = ready!(gate.poll_body(cx)) {
                gate.failed = Some(error.kind());
                return Poll::Ready(Err(error));
            }
        }
        let here = gate.open.min(into.remaining());
        into.put_slice(&gate.received[..here]);
        gate.received.advance(here);
        gate.open -= here;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_before_answer(cx))?;
        self.poll_patiently(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_before_answer(cx))?;
        self.poll_patiently(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_patiently(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_patiently(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

#[async_trait]
impl Shutdown for Gate {
    async fn shutdown(&mut self) {
        // Who is gone needs no goodbye.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Gate {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Gate {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }
}

impl Peek for Gate {}

impl GetTimingDigest for Gate {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }
}

impl GetProxyDigest for Gate {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Gate {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// A limit on waiting, whose timer is made when something is waited for.
#[derive(Default)]
struct Patience {
    timer: Option<Pin<Box<Sleep>>>,
    runs: bool,
}

impl Patience {
    /// Ready when `limit` has passed since the first call after [`rest`](Self::rest).
    fn poll(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.runs {
            timer.as_mut().reset(tokio::time::Instant::now() + limit);
            self.runs = true;
        }
        timer.as_mut().poll(cx)
    }

    fn rest(&mut self) {
        self.runs = false;
    }
}
