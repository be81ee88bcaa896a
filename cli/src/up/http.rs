//! As much HTTP as asking a process on this machine how it is.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time;

/// A process that is well answers at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether `GET path` is answered with 200.
pub(crate) async fn is_ok(address: SocketAddr, path: &str) -> bool {
    matches!(time::timeout(PATIENCE, status(address, path)).await, Ok(Ok(200)))
}

async fn status(address: SocketAddr, path: &str) -> io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200": all that is of interest, and a fixed size.
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    parse(&line).ok_or_else(|| io::Error::other("the answer is not HTTP/1.1"))
}

fn parse(line: &[u8; 12]) -> Option<u16> {
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read() {
        assert_eq!(parse(b"HTTP/1.1 200"), Some(200));
        assert_eq!(parse(b"HTTP/1.0 503"), Some(503));
        assert_eq!(parse(b"SSH-2.0-Open"), None);
    }

    #[tokio::test]
    async fn nobody_there_is_not_ok() {
        let address = crate::up::ports::reserve().unwrap();
        assert!(!is_ok(address, "/readyz").await);
    }
}
