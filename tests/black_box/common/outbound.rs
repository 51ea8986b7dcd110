//! An outbound proxy that records what it is asked: CONNECT for https, absolute form for http.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::upstream::find;

/// A request as the proxy saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// `host:port` for CONNECT, an absolute URL for the rest.
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Shared {
    log: Mutex<Vec<Asked>>,
    /// Where a `host:port` really is.
    places: Mutex<HashMap<String, SocketAddr>>,
    /// The `Proxy-Authorization` that it wants.
    wants: Mutex<Option<String>>,
}

pub struct OutboundProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    task: tokio::task::AbortHandle,
}

impl OutboundProxy {
    pub async fn start() -> Self {
        let listener = super::listen_low();
        listener.set_nonblocking(true).expect("non-blocking");
        let address = listener.local_addr().expect("its address");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let shared = Arc::new(Shared::default());
        let served = shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(served.clone(), stream));
            }
        });
        Self {
            shared,
            address,
            task: task.abort_handle(),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests for `authority` (`host:port`) go to `address`.
    pub fn place(&self, authority: &str, address: SocketAddr) -> &Self {
        self.shared.places.lock().unwrap().insert(authority.to_owned(), address);
        self
    }

    /// Answers 407 to whoever does not say this `Proxy-Authorization`.
    pub fn wants(&self, authorization: &str) -> &Self {
        *self.shared.wants.lock().unwrap() = Some(authorization.to_owned());
        self
    }

    pub fn log(&self) -> Vec<Asked> {
        self.shared.log.lock().unwrap().clone()
    }
}

impl Drop for OutboundProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(shared: Arc<Shared>, mut stream: TcpStream) -> Option<()> {
    let mut buffer = Vec::new();
    let end = loop {
        if let Some(at) = find(&buffer, b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut buffer).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut rows = text.split("\r\n");
    let mut words = rows.next()?.split(' ');
    let method = words.next()?.to_owned();
    let target = words.next()?.to_owned();
    let headers = rows
        .filter_map(|row| row.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect::<Vec<_>>();
    let asked = Asked {
        method,
        target,
        headers,
    };
    shared.log.lock().unwrap().push(asked.clone());
    let wanted = shared.wants.lock().unwrap().clone();
    if wanted.is_some() && asked.header("proxy-authorization") != wanted.as_deref() {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"test\"\r\n\
                       Content-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(refusal.as_bytes()).await.ok()?;
        return None;
    }
    let (authority, forward) = if asked.method == "CONNECT" {
        (asked.target.clone(), None)
    } else {
        let url = url::Url::parse(&asked.target).ok()?;
        let authority = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        let mut head = format!("{} {} HTTP/1.1\r\n", asked.method, &url[url::Position::BeforePath..]);
        for (name, value) in &asked.headers {
            if !name.starts_with("proxy-") && name != "connection" {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head.push_str("connection: close\r\n\r\n");
        (authority, Some(head))
    };
    let place = shared
        .places
        .lock()
        .unwrap()
        .get(&authority)
        .copied()
        .or_else(|| authority.parse().ok());
    let target = match place {
        Some(place) => TcpStream::connect(place).await.ok(),
        None => None,
    };
    let Some(mut target) = target else {
        let refusal = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(refusal).await.ok()?;
        return None;
    };
    match forward {
        None => stream
            .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .await
            .ok()?,
        Some(head) => target.write_all(head.as_bytes()).await.ok()?,
    }
    target.write_all(&buffer[end + 4..]).await.ok()?;
    copy_bidirectional(&mut stream, &mut target).await.ok()?;
    Some(())
}
