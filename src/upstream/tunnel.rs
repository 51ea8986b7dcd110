//! CONNECT through an outbound HTTP proxy (RFC 9110 section 9.3.6).

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora_core::protocols::l4::stream::Stream;
use pingora_error::{Error, ErrorType, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::ProxyUrl;

/// A proxy's answer to CONNECT is short.
const MAX_ANSWER: usize = 16 << 10;

/// Opens a connection to `authority` through a proxy.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub proxy: ProxyUrl,
    pub address: SocketAddr,
    /// `host:port`
    pub authority: String,
    pub limit: Duration,
}

/// The value of `Proxy-Authorization`.
pub(super) fn authorization(proxy: &ProxyUrl) -> Option<String> {
    proxy
        .credentials
        .as_ref()
        .map(|credentials| format!("Basic {}", STANDARD.encode(credentials.reveal())))
}

#[async_trait]
impl L4Connect for Tunnel {
    async fn connect(&self, _: &PingoraAddr) -> Result<Stream> {
        match tokio::time::timeout(self.limit, self.open()).await {
            Ok(stream) => stream,
            Err(_) => Err(Error::explain(
                ErrorType::ConnectTimedout,
                format!("the outbound proxy {:?} did not open a connection in time", self.proxy),
            )
            .into_up()),
        }
    }
}

impl Tunnel {
    async fn open(&self) -> Result<Stream> {
        let broken = |error: std::io::Error| {
            Error::because(
                ErrorType::ConnectError,
                format!("talking to the outbound proxy {:?}", self.proxy),
                error,
            )
            .into_up()
        };
        let mut socket = TcpStream::connect(self.address).await.map_err(broken)?;
        let _ = socket.set_nodelay(true);
        let authority = &self.authority;
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if let Some(authorization) = authorization(&self.proxy) {
            request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
        }
        request.push_str("\r\n");
        socket.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut answer = Vec::new();
        // Byte by byte at the end only: what follows the blank line belongs to the tunnel.
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if answer.len() >= MAX_ANSWER || socket.read(&mut byte).await.map_err(broken)? == 0 {
                return Err(self.refused("it closed the connection or sent no proper answer"));
            }
            answer.push(byte[0]);
        }
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or(&[]);
        let line = String::from_utf8_lossy(line).into_owned();
        let status = line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        match status {
            Some(200..=299) => Ok(Stream::from(socket)),
            _ => Err(self.refused(&format!("it answered {line:?}"))),
        }
    }

    fn refused(&self, why: &str) -> Box<Error> {
        Error::explain(
            ErrorType::ConnectProxyFailure,
            format!(
                "the outbound proxy {:?} opened no tunnel to {}: {why}",
                self.proxy, self.authority
            ),
        )
        .into_up()
    }
}
