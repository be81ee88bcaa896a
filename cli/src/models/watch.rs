//! `beige models watch`: a swap as it goes.

mod live;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::Args;
use proto::v1::{Swap, WatchSwapRequest};
use publisher::{is_lost, persist};
use tonic::Streaming;

use super::{objects, swap};
use crate::failure::{Failure, waiting};
use crate::print;
use crate::remote::{Gateway, Remote};
use live::Live;

/// How long a gateway that is away is waited for: a swap outlives it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Watch a swap: which workers download, verify, load, warm up, are ready.
///
/// A live table on a terminal, else a line for whatever changes. Ends when the swap is decided: with exit code 0 where
/// the name means the new checkpoint, with 1 and each worker's reason where it does not.
#[derive(Args, Debug)]
pub(super) struct WatchArgs {
    /// The model
    model: String,
    /// Go on with later swaps, until Ctrl-C
    #[arg(long)]
    follow: bool,
}

pub(super) async fn run(args: WatchArgs, remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    let mut show = Show::watched(remote);
    let asked = WatchSwapRequest { model: args.model, follow: args.follow };
    let last = watch(&gateway, &asked, &mut show).await?;
    show.finish();
    let last = last.ok_or_else(|| Failure::Refused("the server told of no swap".to_owned()))?;
    // JSON has told it already; the exit code still does.
    let conclusion = swap::conclusion(&last)?;
    if remote.json { Ok(()) } else { print::line(conclusion) }
}

/// Follows the swap that `begun` is, as it is shown to whoever asked for it, until it is decided.
pub(super) async fn until_decided(gateway: &Gateway, begun: Swap, remote: &Remote) -> Result<Swap, Failure> {
    let mut show = Show::beside(remote);
    show.update(&begun)?;
    let asked = WatchSwapRequest { model: begun.model.clone(), follow: false };
    let last = watch(gateway, &asked, &mut show).await?;
    show.finish();
    Ok(last.filter(|last| last.id == begun.id).unwrap_or(begun))
}

/// The last that the server tells before it ends the stream.
async fn watch(
    gateway: &Gateway,
    asked: &WatchSwapRequest,
    show: &mut Show,
) -> Result<Option<Swap>, Failure> {
    let mut last = None;
    loop {
        let open = async || gateway.models().watch_swap(gateway.unhurried(asked.clone())).await;
        let mut swaps = persist(PATIENCE, waiting, open).await?.into_inner();
        match follow(&mut swaps, &mut last, show).await? {
            Ended::Told => return Ok(last),
            Ended::Lost => {}
        }
    }
}

/// Why no more comes.
enum Ended {
    /// The server has said all.
    Told,
    /// The connection broke, or the gateway leaves: another one knows the same.
    Lost,
}

async fn follow(
    swaps: &mut Streaming<Swap>,
    last: &mut Option<Swap>,
    show: &mut Show,
) -> Result<Ended, Failure> {
    loop {
        match swaps.message().await {
            Ok(None) => return Ok(Ended::Told),
            Ok(Some(swap)) => {
                show.update(&swap)?;
                *last = Some(swap);
            }
            Err(status) if is_lost(&status) || status.code() == tonic::Code::Unavailable => {
                return Ok(Ended::Lost);
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// How a swap is shown.
enum Show {
    /// One object per change on standard output.
    Json,
    /// A table that changes in place.
    Live(Box<Live>),
    /// Lines on standard output, or beside it.
    Lines { seen: Option<Box<Swap>>, to: Out },
    /// Not at all: the end is all that is asked for.
    Nothing,
}

#[derive(Clone, Copy)]
enum Out {
    Stdout,
    Stderr,
}

impl Show {
    /// For who asked to see it.
    fn watched(remote: &Remote) -> Self {
        if remote.json {
            return Self::Json;
        }
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        if terminal { Self::Live(Box::default()) } else { Self::Lines { seen: None, to: Out::Stdout } }
    }

    /// For who waits for its end.
    fn beside(remote: &Remote) -> Self {
        match (remote.json, io::stderr().is_terminal()) {
            (true, _) => Self::Nothing,
            (false, true) => Self::Live(Box::default()),
            (false, false) => Self::Lines { seen: None, to: Out::Stderr },
        }
    }

    fn update(&mut self, swap: &Swap) -> Result<(), Failure> {
        match self {
            Self::Json => print::json(&objects::swap(swap)),
            Self::Live(live) => {
                live.update(swap);
                Ok(())
            }
            Self::Lines { seen, to } => {
                let to = *to;
                let news = swap::news(seen.as_deref(), swap);
                *seen = Some(Box::new(swap.clone()));
                news.into_iter().try_for_each(|line| match to {
                    Out::Stdout => print::line(line),
                    Out::Stderr => {
                        print::note(line);
                        Ok(())
                    }
                })
            }
            Self::Nothing => Ok(()),
        }
    }

    fn finish(&self) {
        match self {
            Self::Live(live) => live.finish(),
            Self::Json | Self::Lines { .. } | Self::Nothing => {}
        }
    }
}
