//! Threads that make tokens of texts, apart from the device and from the tasks that speak to gateways.
//!
//! A call is cut into pieces, so that a large one is shared by all threads and a small one waits for at most a
//! piece or two. A piece whose call has ended is skipped.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use model::{Sequence, SpecialTokens, Token, TokenizeError, Tokenizer, Truncation};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::call::Class;

/// A piece has no more text than this, in bytes, unless a single text has: some milliseconds of a thread.
const PIECE_BYTES: usize = 16 << 10;
/// Nor more texts.
const PIECE_TEXTS: usize = 256;

/// What a checkpoint's tokenizer does: the model's, or a test's.
pub trait Tokenise: Send + Sync {
    /// Tokens of one text, special tokens included.
    ///
    /// # Errors
    /// [`TokenizeError::TooLong`] for a text beyond the window that may not be cut.
    fn encode(&self, text: &str, truncation: Truncation) -> Result<Sequence, TokenizeError>;

    /// Tokens of a query and a document, read together. Only the document is cut.
    ///
    /// # Errors
    /// As for one text.
    fn encode_pair(
        &self,
        query: &str,
        document: &str,
        truncation: Truncation,
    ) -> Result<Sequence, TokenizeError>;

    /// Every token of a text, never cut.
    ///
    /// # Errors
    /// [`TokenizeError::Failed`].
    fn tokens(&self, text: &str, special: SpecialTokens) -> Result<Vec<Token>, TokenizeError>;
}

impl Tokenise for Tokenizer {
    fn encode(&self, text: &str, truncation: Truncation) -> Result<Sequence, TokenizeError> {
        Self::encode(self, text, truncation)
    }

    fn encode_pair(
        &self,
        query: &str,
        document: &str,
        truncation: Truncation,
    ) -> Result<Sequence, TokenizeError> {
        Self::encode_pair(self, query, document, truncation)
    }

    fn tokens(&self, text: &str, special: SpecialTokens) -> Result<Vec<Token>, TokenizeError> {
        Self::tokens(self, text, special)
    }
}

/// Why texts have no tokens.
#[derive(Debug)]
pub enum Unread {
    /// The text at this position is at fault.
    Text(usize, TokenizeError),
    /// The tokenizer panicked on a text near this position.
    Panicked(usize),
    /// The threads have ended.
    Stopped,
}

type Piece = Box<dyn FnOnce() + Send>;

/// Mailbox of the threads, which end when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Tokenisers {
    pieces: mpsc::Sender<Piece>,
    /// Bulk pieces that may be in the mailbox at a time: one per thread, so that they do not fill it.
    bulk: Arc<Semaphore>,
    threads: usize,
}

impl Tokenisers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has no thread.
    pub fn spawn(threads: NonZeroUsize) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let threads = threads.get();
        let (pieces, inbox) = mpsc::channel(4 * threads);
        let inbox = Arc::new(Mutex::new(inbox));
        let start = |number: usize| {
            let inbox = inbox.clone();
            thread::Builder::new().name(format!("tokenise-{number}")).spawn(move || work(&inbox))
        };
        let handles = (0..threads).map(start).collect::<io::Result<_>>()?;
        Ok((Self { pieces, bulk: Arc::new(Semaphore::new(threads)), threads }, handles))
    }

    /// Applies `read` to each of `inputs` on the threads; `bytes` tells how much text an input has. Answers in
    /// order. Dropping the future ends it.
    ///
    /// # Errors
    /// The first position at fault among the pieces that were begun.
    pub async fn map<T, R>(
        &self,
        class: Class,
        inputs: Vec<T>,
        bytes: fn(&T) -> usize,
        read: impl Fn(T) -> Result<R, TokenizeError> + Clone + Send + 'static,
    ) -> Result<Vec<R>, Unread>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        let mut all = Vec::with_capacity(inputs.len());
        let pieces = stream::iter(split(inputs, bytes));
        let mut done = pieces
            .map(|(first, piece)| self.piece(class, first, piece, read.clone()))
            .buffered(2 * self.threads);
        while let Some(read) = done.try_next().await? {
            all.extend(read);
        }
        Ok(all)
    }

    async fn piece<T, R>(
        &self,
        class: Class,
        first: usize,
        inputs: Vec<T>,
        read: impl Fn(T) -> Result<R, TokenizeError> + Send + 'static,
    ) -> Result<Vec<R>, Unread>
    where
        T: Send + 'static,
        R: Send + 'static,
    {
        let permit = match class {
            Class::Interactive => None,
            Class::Bulk => Some(self.bulk.clone().acquire_owned().await.map_err(|_| Unread::Stopped)?),
        };
        let (reply, answer) = oneshot::channel();
        let piece = move || {
            let _until_done = permit;
            if reply.is_closed() {
                return;
            }
            let fault = |(at, input)| read(input).map_err(|error| Unread::Text(first + at, error));
            let _ = reply.send(inputs.into_iter().enumerate().map(fault).collect());
        };
        self.pieces.send(Box::new(piece)).await.map_err(|_| Unread::Stopped)?;
        answer.await.unwrap_or(Err(Unread::Panicked(first)))
    }
}

fn work(inbox: &Mutex<mpsc::Receiver<Piece>>) {
    loop {
        // Who waits for a piece holds the lock, the others wait for the lock: one piece wakes one thread.
        let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(piece) = next else { return };
        // The piece's own answer is dropped with it, which tells the caller.
        if catch_unwind(AssertUnwindSafe(piece)).is_err() {
            tracing::error!("a tokenizer panicked");
        }
    }
}

/// Runs of inputs, each with the position of its first.
fn split<T>(inputs: Vec<T>, bytes: fn(&T) -> usize) -> Vec<(usize, Vec<T>)> {
    let mut pieces: Vec<(usize, Vec<T>)> = Vec::new();
    let mut room = 0;
    for (at, input) in inputs.into_iter().enumerate() {
        let size = bytes(&input);
        match pieces.last_mut() {
            Some((_, piece)) if size <= room && piece.len() < PIECE_TEXTS => {
                piece.push(input);
                room -= size;
            }
            Some(_) | None => {
                pieces.push((at, vec![input]));
                room = PIECE_BYTES.saturating_sub(size);
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn pieces_are_bounded_and_in_order() {
        #[track_caller]
        fn check(sizes: &[usize], expected: &[(usize, usize)]) {
            let pieces = split(sizes.to_vec(), |size| *size);
            assert_eq!(pieces.iter().map(|(at, piece)| (*at, piece.len())).collect::<Vec<_>>(), expected);
        }
        check(&[], &[]);
        check(&[1, 2, 3], &[(0, 3)]);
        check(&[10_000, 6_384, 1], &[(0, 2), (2, 1)]);
        check(&[1, 1_000_000, 1], &[(0, 1), (1, 1), (2, 1)]);
        check(&[1; 600], &[(0, 256), (256, 256), (512, 88)]);
    }

    fn pool(threads: usize) -> Tokenisers {
        Tokenisers::spawn(NonZeroUsize::new(threads).unwrap()).unwrap().0
    }

    #[tokio::test]
    async fn answers_are_in_order_over_many_pieces() {
        let inputs: Vec<usize> = (0..3000).collect();
        for class in [Class::Interactive, Class::Bulk] {
            let doubled = pool(3).map(class, inputs.clone(), |_| 100, |x| Ok(2 * x)).await.unwrap();
            assert!(doubled.into_iter().eq(inputs.iter().map(|x| 2 * x)));
        }
    }

    #[tokio::test]
    async fn a_text_at_fault_is_named_by_its_position() {
        let too_long = |x: usize| {
            if x == 700 { Err(TokenizeError::TooLong { tokens: 9, max: 8 }) } else { Ok(x) }
        };
        let unread = pool(2).map(Class::Interactive, (0..2000).collect(), |_| 100, too_long).await;
        assert!(matches!(unread, Err(Unread::Text(700, TokenizeError::TooLong { tokens: 9, max: 8 }))));
    }

    #[tokio::test]
    async fn a_panic_ends_one_call_and_no_thread() {
        let pool = pool(1);
        let panics = |x: usize| if x == 5 { panic!("as told") } else { Ok(x) };
        let unread = pool.map(Class::Bulk, (0..9).collect(), |_| 1, panics).await;
        assert!(matches!(unread, Err(Unread::Panicked(0))));
        assert_eq!(pool.map(Class::Bulk, vec![1, 2], |_| 1, Ok).await.unwrap(), [1, 2]);
    }

    #[tokio::test]
    async fn pieces_of_a_call_that_ended_are_skipped() {
        let pool = pool(1);
        let (begun, ran) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let slow = {
            let (begun, ran) = (begun.clone(), ran.clone());
            move |x: usize| {
                begun.add_permits(1);
                ran.fetch_add(1, Ordering::Relaxed);
                thread::sleep(std::time::Duration::from_millis(20));
                Ok(x)
            }
        };
        let call = pool.map(Class::Interactive, (0..4).collect(), |_| PIECE_BYTES, slow);
        tokio::select! {
            _ = call => panic!("it cannot be done yet"),
            _ = begun.acquire() => {}
        }
        assert_eq!(pool.map(Class::Interactive, vec![1], |_| 1, Ok).await.unwrap(), [1]);
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }
}
