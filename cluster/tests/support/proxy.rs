//! A TCP proxy with faults, for tests: what stands between two processes delays, holds, cuts or refuses at will.
//!
//! Needs nothing but the standard library and `tokio`, so that other crates can include this file by its path. It
//! runs on the test's own runtime and ends when it is dropped.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each crate includes it where it likes, and uses what it likes"
)]

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

/// Chunks under way in one direction; beyond them the sender feels it.
const UNDER_WAY: usize = 256;

/// What the proxy does to everything that passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Passes it on.
    #[default]
    None,
    /// Passes on what clients say, and what they are answered so much later. Order and rate stay.
    DelayAnswers(Duration),
    /// Passes nothing on: connections open and stay open. All of it arrives once the fault is over, as it does
    /// where packets were lost.
    Hold,
    /// Refuses new connections and has ended the open ones, as where no process listens.
    Refuse,
}

/// A port of ours that leads to another one.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    _tasks: JoinSet<()>,
}

/// What connections and the listener go by.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    fault: Fault,
    /// How many times all connections of the time were ended.
    cuts: u64,
    /// How many times all connections of the time were left without an other end.
    strandings: u64,
}

impl Proxy {
    /// Leads to `upstream`, as `host:port`, and listens on a free port.
    pub async fn start(upstream: impl Into<String>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (orders, followed) = watch::channel(Orders::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, upstream.into(), followed));
        Self { address, orders, _tasks: tasks }
    }

    /// `host:port` of this side.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// What happens from now on, to connections old and new.
    pub fn set(&self, fault: Fault) {
        self.orders.send_modify(|orders| {
            orders.fault = fault;
            orders.cuts += u64::from(fault == Fault::Refuse);
        });
    }

    /// Ends the open connections; new ones are welcome.
    pub fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Forgets the open connections, as a router does that was started anew: they stay open and nothing comes
    /// through any more, ever. New ones are welcome.
    pub fn strand(&self) {
        self.orders.send_modify(|orders| orders.strandings += 1);
    }
}

/// Accepts until dropped; connections end with it.
async fn serve(mut listener: TcpListener, upstream: String, mut orders: watch::Receiver<Orders>) {
    let address = listener.local_addr().expect("bound");
    let mut connections = JoinSet::new();
    loop {
        let refuses = |orders: &Orders| orders.fault == Fault::Refuse;
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                connections.spawn(connect(client, upstream.clone(), orders.clone()));
            }
            changed = async { orders.wait_for(refuses).await.map(|_| ()) } => {
                let Ok(()) = changed else { return };
                drop(listener);
                // Bound and not listening: refused, and nobody else takes the port.
                let reserved = bind(address).expect("the port was ours");
                let Ok(_) = orders.wait_for(|orders| !refuses(orders)).await else { return };
                listener = reserved.listen(128).expect("bound");
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // Connections of before may still be closing.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// One connection, until an end closes it or it is cut.
async fn connect(client: TcpStream, upstream: String, mut orders: watch::Receiver<Orders>) {
    let born = *orders.borrow_and_update();
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let way = |from, to, is_answer| Way { from, to, is_answer, born, orders: orders.clone() };
    let (requests, answers) = (way(from_client, to_server, false), way(from_server, to_client, true));
    tokio::select! {
        // Nothing passes that a later order would let through.
        biased;
        _ = orders.wait_for(|orders| orders.cuts > born.cuts) => {}
        _ = async { tokio::join!(requests.pass(), answers.pass()) } => {}
    }
}

/// One direction of a connection.
struct Way {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    is_answer: bool,
    /// When the connection was made.
    born: Orders,
    orders: watch::Receiver<Orders>,
}

impl Way {
    /// Passes on until an end closes.
    async fn pass(mut self) {
        let mut under_way = VecDeque::new();
        let mut chunk = vec![0; CHUNK];
        let mut open = true;
        while open || !under_way.is_empty() {
            let due = under_way.front().map(|&(due, _)| due);
            tokio::select! {
                read = self.from.read(&mut chunk), if open && under_way.len() < UNDER_WAY => match read {
                    Ok(0) | Err(_) => open = false,
                    Ok(bytes) => under_way.push_back((Instant::now() + self.delay(), chunk[..bytes].to_vec())),
                },
                () = time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.gate().await;
                    let (_, bytes) = under_way.pop_front().expect("one is due");
                    if self.to.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            }
        }
        self.gate().await;
        let _ = self.to.shutdown().await;
    }

    fn delay(&self) -> Duration {
        match self.orders.borrow().fault {
            Fault::DelayAnswers(delay) if self.is_answer => delay,
            Fault::DelayAnswers(_) | Fault::None | Fault::Hold | Fault::Refuse => Duration::ZERO,
        }
    }

    /// Waits until something may pass.
    async fn gate(&mut self) {
        let born = self.born;
        let passes = |orders: &Orders| orders.fault != Fault::Hold && orders.strandings == born.strandings;
        let _ = self.orders.wait_for(passes).await;
    }
}
