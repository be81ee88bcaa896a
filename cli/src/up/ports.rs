//! Addresses on this machine.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use crate::failure::Failure;

/// A port of the loopback interface that a child may listen on soon.
///
/// A connection is made to it and closed by the listening end, which leaves the port waiting out its
/// last packets for a minute: the kernel hands it to no one, but who asks for it by number gets it.
pub(crate) fn reserve() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut client = TcpStream::connect(address)?;
    drop(listener.accept()?);
    client.read_to_end(&mut Vec::new())?;
    Ok(address)
}

/// Checks that a child may listen there; `flag` is what set it. A port of 0 is replaced by a free one.
pub(crate) fn check(address: SocketAddr, flag: &str) -> Result<SocketAddr, Failure> {
    if address.port() == 0 {
        let port = reserve().map_err(anyhow::Error::from)?.port();
        return Ok(SocketAddr::new(address.ip(), port));
    }
    match TcpListener::bind(address) {
        Ok(_) => Ok(address),
        Err(error) => Err(Failure::Local(anyhow::anyhow!(
            "cannot listen on {address} ({error}): choose another with {flag}"
        ))),
    }
}

/// Where a client on this machine finds a server that listens on `address`.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => address.ip(),
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_reserved_port_is_given_to_who_asks_for_it_and_to_no_one_else() {
        let reserved: BTreeSet<SocketAddr> = (0..20).map(|_| reserve().unwrap()).collect();
        assert_eq!(reserved.len(), 20);
        for address in reserved {
            TcpListener::bind(address).unwrap();
        }
    }

    #[test]
    fn a_taken_address_is_refused_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let failure = check(taken.local_addr().unwrap(), "--listen").unwrap_err().to_string();
        assert!(failure.ends_with("choose another with --listen"), "{failure}");
        assert_ne!(check("127.0.0.1:0".parse().unwrap(), "--listen").unwrap().port(), 0);
    }

    #[test]
    fn a_server_on_every_interface_is_found_on_the_loopback() {
        let check = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(check("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(check("[::]:8080"), "[::1]:8080");
        assert_eq!(check("10.1.2.3:8080"), "10.1.2.3:8080");
    }
}
