//! A caller that writes HTTP/2 frames as it likes, which no library would.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;

/// The error codes of the specification that are of interest.
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// `:method: POST`, `:scheme: http`, `:path: /`, in HPACK.
const REQUEST: &[u8] = &[0x83, 0x86, 0x84];
/// A header that HTTP/2 does not know, and that makes a request malformed: `connection: x`.
const MALFORMED: &[u8] = b"\x83\x86\x84\x00\x0aconnection\x01x";

/// One connection.
pub(crate) struct Frames {
    stream: TcpStream,
    next: u32,
    written: Vec<u8>,
}

/// What the other end said of importance.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A stream is over, with this code.
    Reset(u32),
    /// So is the connection, with this code.
    GoAway(u32),
}

impl Frames {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut frames = Self { stream, next: 1, written: PREFACE.to_vec() };
        frames.put(SETTINGS, 0, 0, &[]);
        frames
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.written.extend_from_slice(&length[1..]);
        self.written.extend_from_slice(&[kind, flags]);
        self.written.extend_from_slice(&stream.to_be_bytes());
        self.written.extend_from_slice(payload);
    }

    /// Begins a call and leaves it open.
    pub(crate) fn open(&mut self) {
        self.put(HEADERS, END_HEADERS, self.next, REQUEST);
        self.next += 2;
    }

    /// Begins a call and takes it back.
    pub(crate) fn open_and_reset(&mut self) {
        self.open();
        self.put(RST_STREAM, 0, self.next - 2, &CANCEL.to_be_bytes());
    }

    /// Begins a call that is none.
    pub(crate) fn malformed(&mut self) {
        self.put(HEADERS, END_HEADERS, self.next, MALFORMED);
        self.next += 2;
    }

    /// Sends all that was put, and reads until `enough` or the end. A connection that breaks is at its end.
    pub(crate) async fn converse(mut self, enough: impl Fn(&Said) -> bool) -> Vec<Said> {
        let (mut reader, mut writer) = self.stream.split();
        let write = async {
            let _ = writer.write_all(&self.written).await;
            std::future::pending::<()>().await;
        };
        let read = async {
            let mut heard = Vec::new();
            while let Some(said) = next(&mut reader).await {
                let last = enough(&said);
                heard.push(said);
                if last {
                    break;
                }
            }
            heard
        };
        let talk = async {
            tokio::select! {
                () = write => Vec::new(),
                heard = read => heard,
            }
        };
        time::timeout(Duration::from_secs(60), talk).await.expect("it says nothing of the kind")
    }
}

/// The next frame of importance.
async fn next(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Said> {
    loop {
        let mut header = [0; 9];
        reader.read_exact(&mut header).await.ok()?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; length as usize];
        reader.read_exact(&mut payload).await.ok()?;
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match header[3] {
            RST_STREAM => return Some(Said::Reset(code(0))),
            GOAWAY => return Some(Said::GoAway(code(4))),
            _ => {}
        }
    }
}
