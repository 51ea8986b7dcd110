//! A new process takes the listening sockets over from the one that runs, so that no connection is refused in between.
//!
//! A running process listens on a socket in its data folder, which only its own user can ask. Whoever connects there gets the
//! listening sockets, starts, and says when it serves: only then does the old process stop. If the new one fails before,
//! nothing has happened. Meanwhile both accept, and work on one data folder, which that is made for.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::{Signal, geteuid, getpid, kill_process};

/// In the data folder.
const SOCKET: &str = "upgrade.sock";
/// The kernel passes no more at once (`SCM_MAX_FD`).
const MOST: usize = 253;
/// The sockets are sent in so long.
const SENDING: Duration = Duration::from_secs(10);
/// A new process may take so long to start.
const STARTING: Duration = Duration::from_secs(600);
/// What comes with the sockets, and what says that they are served.
const HERE: &[u8] = b"s";
const SERVED: &[u8] = b"k";

/// Listening sockets, and where they listen.
pub type Bound = (SocketAddr, TcpListener);

/// What this process can hand over, until it stops.
pub struct HandOver {
    sockets: Mutex<Option<Vec<TcpListener>>>,
    is_taken: AtomicBool,
}

impl HandOver {
    /// Of these sockets.
    ///
    /// # Errors
    /// A socket cannot be doubled.
    pub fn of<'a>(bound: impl IntoIterator<Item = &'a Bound>) -> io::Result<Arc<HandOver>> {
        let doubled = bound.into_iter().map(|(_, listener)| listener.try_clone());
        Ok(Arc::new(HandOver {
            sockets: Mutex::new(Some(doubled.collect::<io::Result<_>>()?)),
            is_taken: AtomicBool::new(false),
        }))
    }

    /// From now on there is nothing to hand over: the sockets are closed as far as this process has them.
    pub fn close(&self) {
        *self.sockets.lock() = None;
    }

    /// Whether another process serves in this one's place.
    pub fn is_taken(&self) -> bool {
        self.is_taken.load(Relaxed)
    }

    /// Waits for a new process, on a thread of its own. One that serves this data folder already is left alone, unless it is
    /// the one that has just been replaced.
    ///
    /// # Errors
    /// Nobody can ask for the sockets. This process serves all the same.
    pub fn offer(self: &Arc<Self>, data_dir: &Path, is_successor: bool) -> io::Result<()> {
        let path = data_dir.join(SOCKET);
        if !is_successor && UnixStream::connect(&path).is_ok() {
            let reason = "another process serves this data folder";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
        }
        // In the place of one that is left, or that the old process still has.
        let fresh = data_dir.join(format!("{SOCKET}.{}", getpid().as_raw_nonzero()));
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        fs::rename(&fresh, &path)?;
        let sockets = Arc::clone(self);
        let thread = std::thread::Builder::new().name("hand over".into());
        thread.spawn(move || sockets.wait(&listener))?;
        Ok(())
    }

    fn wait(&self, listener: &UnixListener) {
        loop {
            let given = listener.accept().and_then(|(stream, _)| self.give(&stream));
            match given {
                Ok(true) => {
                    self.is_taken.store(true, Relaxed);
                    tracing::info!("a new process serves: this one stops");
                    // As everybody stops it.
                    if let Err(error) = kill_process(getpid(), Signal::TERM) {
                        tracing::error!(%error, "this process cannot be stopped by itself: send it SIGTERM");
                    }
                    return;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "the listening sockets were not handed over");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Gives the sockets to whoever asks; whether they are served there now.
    fn give(&self, stream: &UnixStream) -> io::Result<bool> {
        let asking = rustix::net::sockopt::socket_peercred(stream)?.uid;
        if !asking.is_root() && asking != geteuid() {
            let reason = format!("user {} is not the one that this process runs as", asking.as_raw());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        stream.set_write_timeout(Some(SENDING))?;
        stream.set_read_timeout(Some(STARTING))?;
        {
            let sockets = self.sockets.lock();
            let Some(sockets) = &*sockets else { return Ok(false) };
            send(stream, sockets)?;
        }
        let mut said = [0];
        let mut stream = stream;
        Ok(stream.read(&mut said)? == 1 && said == SERVED)
    }
}

fn send(stream: &UnixStream, sockets: &[TcpListener]) -> io::Result<()> {
    let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other(
            "there are more listening sockets than can be handed over",
        ));
    }
    rustix::net::sendmsg(stream, &[IoSlice::new(HERE)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Listening sockets of a process that goes on serving until it is told that this one does.
pub struct Taken {
    sockets: Vec<Bound>,
    from: UnixStream,
}

impl Taken {
    /// The sockets of the process that serves `data_dir`.
    ///
    /// # Errors
    /// No process does, or it does not give them.
    pub fn from(data_dir: &Path) -> io::Result<Taken> {
        let path: PathBuf = data_dir.join(SOCKET);
        let from = UnixStream::connect(path)?;
        from.set_read_timeout(Some(SENDING))?;
        from.set_write_timeout(Some(SENDING))?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut here = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&from, &mut [IoSliceMut::new(&mut here)], &mut control, flags)?;
        if received.bytes == 0 {
            let reason =
                "the process that serves this data folder gives nothing: it is stopping, or runs as another user";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        let mut sockets = Vec::new();
        for message in control.drain() {
            let RecvAncillaryMessage::ScmRights(descriptors) = message else {
                continue;
            };
            for descriptor in descriptors {
                let descriptor: OwnedFd = descriptor;
                let listener = TcpListener::from(descriptor);
                sockets.push((listener.local_addr()?, listener));
            }
        }
        Ok(Taken { sockets, from })
    }

    /// The socket that listens at `address`, if there is one.
    pub fn socket(&mut self, address: SocketAddr) -> Option<Bound> {
        let at = self.sockets.iter().position(|(found, _)| *found == address)?;
        Some(self.sockets.swap_remove(at))
    }

    /// This process serves: the other one may stop.
    ///
    /// # Errors
    /// The other one is gone.
    pub fn confirm(mut self) -> io::Result<()> {
        self.from.write_all(SERVED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> Vec<Bound> {
        let sockets = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        sockets
            .map(|listener| (listener.local_addr().unwrap(), listener))
            .collect()
    }

    #[test]
    fn sockets_are_taken_by_their_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let old = bound();
        let offer = HandOver::of(&old).unwrap();
        offer.offer(folder.path(), false).unwrap();
        let addresses: Vec<SocketAddr> = old.iter().map(|(address, _)| *address).collect();
        for _ in 0..2 {
            // One that takes them and fails changes nothing.
            let mut taken = Taken::from(folder.path()).unwrap();
            for address in &addresses {
                let (found, _) = taken.socket(*address).expect("it was handed over");
                assert_eq!(found, *address);
            }
            assert!(taken.socket(addresses[0]).is_none());
        }
        // The one that serves is left alone.
        let second = HandOver::of(&bound()).unwrap().offer(folder.path(), false);
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        offer.close();
        let nothing = Taken::from(folder.path()).err().expect("it stops");
        assert_eq!(nothing.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_an_ended_process_left_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Taken::from(folder.path()).is_err());
        drop(UnixListener::bind(folder.path().join(SOCKET)).unwrap());
        assert!(Taken::from(folder.path()).is_err());
        HandOver::of(&bound()).unwrap().offer(folder.path(), false).unwrap();
        assert!(Taken::from(folder.path()).is_ok());
    }
}
