//! The asking side.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use futures_util::{StreamExt as _, stream};

use super::message::{Question, Reply};
use super::seal::{Seal, Whole, bare};
use super::{MAX_FRAME, PATH};
use crate::bucket::Pieces;
use crate::cache::Finished;
use crate::config::Secret;
use crate::fill::transfer::Transfer;

/// A reply holds a stored header, which is bounded, and an error's body.
const MAX_REPLY: usize = 4 << 20;
/// How long a node may take to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The other nodes, as they are asked.
#[derive(Debug)]
pub struct Peers {
    client: reqwest::Client,
    secret: Secret,
}

impl Peers {
    /// Asks nobody yet.
    ///
    /// # Errors
    /// The system's certificates cannot be used.
    pub fn new(secret: Secret) -> reqwest::Result<Peers> {
        // Only the first one counts; all are the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .build()?;
        Ok(Peers { client, secret })
    }

    /// Asks the node at `url`. Waits as long as that node does; whoever calls this watches that it lives.
    ///
    /// # Errors
    /// That node cannot be reached, does not know this one, or somebody else answers.
    pub async fn ask(&self, url: &str, question: &Question) -> io::Result<(Reply, Transfer)> {
        let (headers, seal) = question.headers(&self.secret, url);
        let request = self.client.get(format!("{}{PATH}", bare(url))).headers(headers);
        let response = request.send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            let reason = format!(
                "it answers {}: its ARTIFACTAPI_NODE_SECRET is another one, or it is no node",
                response.status()
            );
            return Err(io::Error::other(reason));
        }
        let mut pieces = response.bytes_stream().map(|piece| piece.map_err(failed)).boxed();
        let mut read = BytesMut::new();
        let line = line(&mut pieces, &mut read, MAX_REPLY).await?;
        let reply: Reply = seal.open("answer", &line)?;
        let finished = match &reply {
            Reply::Object { finished, .. } => finished.map(|(length, sha256)| Finished { length, sha256 }),
            _ => None,
        };
        let mut body = Transfer::new(stream::empty().boxed(), finished);
        body.pieces = match &reply {
            Reply::Object { finished: None, .. } => unframed(pieces, read, seal, Arc::clone(&body.whole)),
            _ => {
                let begun = read.freeze();
                let begun = stream::iter((!begun.is_empty()).then_some(Ok(begun)));
                begun.chain(pieces).boxed()
            }
        };
        Ok((reply, body))
    }

    /// Who answers at `url`: name and URL.
    ///
    /// # Errors
    /// Those of [`Peers::ask`].
    pub async fn hello(&self, url: &str) -> io::Result<(String, Option<String>)> {
        let asked = tokio::time::timeout(HELLO_LIMIT, self.ask(url, &Question::hello())).await;
        match asked.map_err(|_| io::Error::other(format!("it does not answer within {HELLO_LIMIT:?}")))? {
            Ok((Reply::Node { name, url }, _)) => Ok((name, url)),
            Ok(_) => Err(io::Error::other("it does not say who it is; is it of another version?")),
            Err(error) => Err(error),
        }
    }
}

/// Takes a line off what comes, without its end.
async fn line(pieces: &mut Pieces, read: &mut BytesMut, most: usize) -> io::Result<BytesMut> {
    loop {
        if let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line = read.split_to(end);
            read.advance(1);
            return Ok(line);
        }
        if read.len() > most {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line of the answer has no end",
            ));
        }
        match pieces.next().await {
            Some(piece) => read.extend_from_slice(&piece?),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The pieces of a body that grows, without what is between them; what the whole of it must be is in `whole` when they end.
pub(super) fn unframed(pieces: Pieces, read: BytesMut, seal: Seal, whole: Arc<OnceLock<Finished>>) -> Pieces {
    // What is left of the frame.
    let state = (pieces, read, seal, whole, 0_usize);
    stream::try_unfold(state, |(mut pieces, mut read, seal, whole, mut left)| async move {
        loop {
            if left > 0 && !read.is_empty() {
                let piece = read.split_to(left.min(read.len())).freeze();
                left -= piece.len();
                return Ok(Some((piece, (pieces, read, seal, whole, left))));
            }
            if left == 0 && read.len() >= 4 {
                left = read.get_u32() as usize;
                if left > MAX_FRAME {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
                }
                if left == 0 {
                    let line = line(&mut pieces, &mut read, MAX_REPLY).await?;
                    let Whole { length, sha256 } = seal.open("end", &line)?;
                    let _ = whole.set(Finished { length, sha256 });
                    return Ok(None);
                }
                continue;
            }
            match pieces.next().await {
                Some(piece) => read.extend_from_slice(&piece?),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    })
    .boxed()
}

fn failed(error: reqwest::Error) -> io::Error {
    io::Error::other(crate::bucket::told(error))
}
