//! Closing an HTTP/2 connection without losing what is on its way.
//!
//! A server that closes says GOAWAY twice: first that it will go, then, once a PING has come back, which calls it
//! took. What a caller had begun by then is answered. But callers answer a PING before they send the calls they have
//! queued: those would arrive after the second GOAWAY and be lost, and not every client library tries them again. So
//! the PING is held back here for a moment, as the specification advises: who has heard the first GOAWAY begins no
//! more calls, and those that were queued arrive.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{self, Sleep};
use tonic::transport::server::Connected;

/// How long callers have to send what they had queued.
const MOMENT: Duration = Duration::from_millis(100);

/// A connection that leaves a moment between its two GOAWAYs.
pub struct Goodbye<S> {
    stream: S,
    written: Frames,
    moment: Moment,
}

enum Moment {
    /// No PING has come after a GOAWAY yet.
    Ahead,
    /// It has, and is held back.
    Now(Pin<Box<Sleep>>),
    /// It has gone out.
    Over,
}

impl<S> Goodbye<S> {
    /// Wraps a connection on which nothing was written yet.
    pub fn new(stream: S) -> Self {
        Self { stream, written: Frames::default(), moment: Moment::Ahead }
    }
}

impl<S: AsyncWrite + Unpin> Goodbye<S> {
    /// How many bytes of `slices` may go out now.
    fn admit(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let all = slices.iter().map(|slice| slice.len()).sum();
        let before_ping = match self.moment {
            Moment::Over => None,
            Moment::Ahead | Moment::Now(_) => self.written.before_ping(slices),
        };
        match before_ping {
            None => return Poll::Ready(Ok(all)),
            Some(bytes) if bytes > 0 => return Poll::Ready(Ok(bytes)),
            Some(_) => {}
        }
        if let Moment::Ahead = self.moment {
            // The moment is what callers have after the GOAWAY: it must not lie in a buffer of ours.
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.moment = Moment::Now(Box::pin(time::sleep(MOMENT)));
        }
        if let Moment::Now(sleep) = &mut self.moment {
            ready!(sleep.as_mut().poll(cx));
        }
        self.moment = Moment::Over;
        Poll::Ready(Ok(all))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Goodbye<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Goodbye<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let admitted = ready!(self.admit(cx, &[IoSlice::new(bytes)]))?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes[..admitted]))?;
        self.written.follow(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let admitted = ready!(self.admit(cx, slices))?;
        if admitted < slices.iter().map(|slice| slice.len()).sum() {
            // Once in the life of a connection: what comes first, by itself.
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            return self.poll_write(cx, &first[..admitted.min(first.len())]);
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let part = left.min(slice.len());
            self.written.follow(&slice[..part]);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Goodbye<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

const HEADER: usize = 9;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;

/// Where in a sequence of frames its writer is.
#[derive(Clone, Copy, Debug, Default)]
struct Frames {
    /// Bytes of the present frame's header that have passed; 0 between frames and within a payload.
    header: usize,
    /// Length of the payload, as far as the header has told.
    length: usize,
    /// Bytes of the payload that have not passed.
    payload: usize,
    /// Whether a GOAWAY has passed.
    goaway: bool,
}

impl Frames {
    /// Bytes of `slices` before a PING that comes after a GOAWAY, if there is one.
    fn before_ping(mut self, slices: &[IoSlice<'_>]) -> Option<usize> {
        let mut before = 0;
        for slice in slices {
            if let Some(offset) = self.pass(slice, Self::is_last_ping) {
                return Some(before + offset);
            }
            before += slice.len();
        }
        None
    }

    /// Lets `bytes` pass.
    fn follow(&mut self, bytes: &[u8]) {
        self.pass(bytes, |_, _| false);
    }

    /// Whether a header that begins with `bytes` is what is looked for. One that is cut off is not.
    fn is_last_ping(&self, bytes: &[u8]) -> bool {
        matches!(bytes, [_, _, _, PING, flags, ..] if self.goaway && flags & ACK == 0)
    }

    /// Lets `bytes` pass up to a frame that `stop` stops, and answers where that is.
    fn pass(&mut self, bytes: &[u8], stop: impl Fn(&Self, &[u8]) -> bool) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.payload > 0 {
                let part = self.payload.min(bytes.len() - at);
                self.payload -= part;
                at += part;
                continue;
            }
            if self.header == 0 && stop(self, &bytes[at..]) {
                return Some(at);
            }
            match self.header {
                0..3 => self.length = self.length << 8 | usize::from(bytes[at]),
                3 => self.goaway |= bytes[at] == GOAWAY,
                _ => {}
            }
            self.header += 1;
            at += 1;
            if self.header == HEADER {
                *self = Self { payload: self.length, goaway: self.goaway, ..Self::default() };
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    const DATA: u8 = 0;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 0], payload].concat()
    }

    #[track_caller]
    fn check(frames: &[(u8, u8)], expected: Option<usize>) {
        // Payloads that look like what is looked for.
        let payload = frame(GOAWAY, 0, &frame(PING, 0, &[]));
        let bytes: Vec<u8> = frames.iter().flat_map(|&(kind, flags)| frame(kind, flags, &payload)).collect();
        let length = HEADER + payload.len();
        let before = expected.map(|frames| frames * length);
        assert_eq!(Frames::default().before_ping(&[IoSlice::new(&bytes)]), before);
        for cut in 0..bytes.len() {
            // A header that is cut off cannot be held back.
            let (one, other) = bytes.split_at(cut);
            let found = Frames::default().before_ping(&[IoSlice::new(one), IoSlice::new(other)]);
            assert!(found == before || (cut % length).wrapping_sub(1) < 4, "{found:?} at {cut}");
        }
    }

    #[test]
    fn the_ping_after_a_goaway_is_found() {
        check(&[], None);
        check(&[(DATA, 0), (PING, 0), (DATA, 1)], None);
        check(&[(DATA, 0), (GOAWAY, 0), (DATA, 0)], None);
        check(&[(DATA, 0), (GOAWAY, 0), (PING, 0)], Some(2));
        check(&[(GOAWAY, 0), (PING, ACK), (DATA, 0), (PING, 0), (PING, 0)], Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn all_is_written_and_the_ping_a_moment_later() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut near = Goodbye::new(near);
        let (first, then) = (frame(GOAWAY, 0, &[0; 8]), frame(PING, 0, &[7; 8]));
        let all = [first.clone(), then.clone()].concat();
        let began = Instant::now();
        let write = async {
            near.write_all(&all).await.unwrap();
            near.write_all(&frame(PING, 0, &[8; 8])).await.unwrap();
        };
        let read = async {
            let mut goaway = vec![0; first.len()];
            far.read_exact(&mut goaway).await.unwrap();
            assert_eq!((goaway, began.elapsed()), (first.clone(), Duration::ZERO));
            let mut ping = vec![0; then.len()];
            far.read_exact(&mut ping).await.unwrap();
            assert_eq!(ping, then);
            assert!(began.elapsed() >= MOMENT && began.elapsed() < 2 * MOMENT);
            far.read_exact(&mut ping).await.unwrap();
            assert!(began.elapsed() < 2 * MOMENT, "one moment is enough");
        };
        tokio::join!(write, read);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_followed(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::vec(0_usize..200, 0..10),
        ) {
            let mut whole = Frames::default();
            whole.follow(&bytes);
            let mut pieces = Frames::default();
            let mut at = 0;
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            for cut in cuts {
                pieces.follow(&bytes[at..cut]);
                at = cut;
            }
            prop_assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
        }
    }
}
