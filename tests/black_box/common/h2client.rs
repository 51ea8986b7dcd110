//! An HTTP/2 client, by prior knowledge over cleartext.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::client::Response;

#[derive(Clone)]
pub struct H2Connection {
    send: h2::client::SendRequest<Bytes>,
    authority: String,
}

impl H2Connection {
    pub async fn open(address: SocketAddr) -> Self {
        Self::open_as(address, &address.to_string()).await
    }

    /// A connection whose requests are for `authority`.
    pub async fn open_as(address: SocketAddr, authority: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (send, connection) = h2::client::handshake(stream).await.expect("an HTTP/2 handshake");
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Self {
            send,
            authority: authority.to_owned(),
        }
    }

    /// Starts a request; the answer is awaited by `finish`, so that several can run at once.
    pub async fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        self.send(method, target, headers, b"").await
    }

    /// This request with a body, if it is not empty.
    pub async fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{target}", self.authority));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut send = self.send.clone().ready().await.expect("a stream");
        let (response, mut sending) = send
            .send_request(request.body(()).expect("a request"), body.is_empty())
            .expect("sent");
        if !body.is_empty() {
            // A server may refuse before it has read everything.
            let _ = sending.send_data(Bytes::copy_from_slice(body), true);
        }
        let (parts, mut stream) = response.await.expect("an answer").into_parts();
        let mut body = Vec::new();
        let mut complete = true;
        while let Some(data) = stream.data().await {
            match data {
                Ok(data) => {
                    let _ = stream.flow_control().release_capacity(data.len());
                    body.extend_from_slice(&data);
                }
                Err(_) => {
                    complete = false;
                    break;
                }
            }
        }
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Response {
            status: parts.status.as_u16(),
            headers: parts
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), text(value)))
                .collect(),
            body: body.into(),
            complete,
            trailers: Vec::new(),
        }
    }

    pub async fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[]).await
    }
}
