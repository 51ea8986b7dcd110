//! A scripted DNS server on UDP: A and AAAA from a table, everything else does not exist.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

#[derive(Default)]
struct Table {
    addresses: HashMap<String, Vec<IpAddr>>,
    silent: bool,
    ttl: u32,
    asked: Vec<String>,
}

pub struct Dns {
    address: SocketAddr,
    table: Arc<Mutex<Table>>,
    task: AbortHandle,
}

impl Dns {
    pub async fn start() -> Self {
        let mut socket = None;
        for _ in 0..100 {
            let port = super::free_port();
            if let Ok(bound) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).await {
                socket = Some(bound);
                break;
            }
        }
        let socket = socket.expect("a UDP port");
        let address = socket.local_addr().expect("its address");
        let table = Arc::new(Mutex::new(Table {
            ttl: 60,
            ..Table::default()
        }));
        let served = table.clone();
        let task = tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let answer = answer(&served, &packet[..length]);
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self {
            address,
            table,
            task: task.abort_handle(),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, name: &str, addresses: &[IpAddr]) -> &Self {
        self.table
            .lock()
            .unwrap()
            .addresses
            .insert(name.to_ascii_lowercase(), addresses.to_vec());
        self
    }

    /// The time to live of every record.
    pub fn ttl(&self, seconds: u32) -> &Self {
        self.table.lock().unwrap().ttl = seconds;
        self
    }

    /// Answers nothing from now on, or again.
    pub fn silent(&self, silent: bool) -> &Self {
        self.table.lock().unwrap().silent = silent;
        self
    }

    /// How often this name was asked for, whatever the type.
    pub fn count(&self, name: &str) -> usize {
        self.table
            .lock()
            .unwrap()
            .asked
            .iter()
            .filter(|asked| asked.eq_ignore_ascii_case(name))
            .count()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(table: &Mutex<Table>, query: &[u8]) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut at = 12;
    loop {
        let length = *query.get(at)? as usize;
        at += 1;
        if length == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question_end = at + 4;
    let name = name.join(".");
    let mut table = table.lock().unwrap();
    table.asked.push(name.clone());
    if table.silent {
        return None;
    }
    let known = table.addresses.get(&name);
    let records = known.into_iter().flatten().filter(|address| match kind {
        1 => address.is_ipv4(),
        28 => address.is_ipv6(),
        _ => false,
    });
    let records = records.copied().collect::<Vec<_>>();
    let mut out = query.get(..2)?.to_vec();
    // An answer, authoritative, recursion desired and available; NXDOMAIN for what is not in the table.
    let flags: u16 = if known.is_some() { 0x8580 } else { 0x8583 };
    out.extend(flags.to_be_bytes());
    // A negative answer can only be cached with the zone's SOA.
    for count in [1, records.len() as u16, u16::from(records.is_empty()), 0] {
        out.extend(count.to_be_bytes());
    }
    out.extend_from_slice(query.get(12..question_end)?);
    if records.is_empty() {
        out.extend([0, 0, 6, 0, 1]);
        out.extend(table.ttl.to_be_bytes());
        // Primary server and mailbox (the root), then serial, refresh, retry, expire and minimum.
        out.extend([0, 22, 0, 0]);
        for value in [1, 3600, 600, 86400, table.ttl] {
            out.extend(value.to_be_bytes());
        }
    }
    for address in records {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend(1u16.to_be_bytes());
        out.extend(table.ttl.to_be_bytes());
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(bytes);
    }
    Some(out)
}
