//! `beige embed`: texts in, vectors out, a few or many millions.
//!
//! A thread reads texts and cuts them into batches; so many calls are open at once; answers are written in
//! the order of the texts. The first answer fixes the checkpoint, and every later call requires it: no
//! output ever holds vectors of two.

mod args;
mod batches;
mod calls;
mod jsonl;
mod mark;
mod npy;
mod output;
mod progress;
mod rows;
mod safetensors;
mod sink;

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _, stream};
use serde_json::json;
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::print;
use crate::remote::Purpose;
use crate::texts::Texts;

pub(crate) use args::{EmbedArgs, Encoding};

use args::Job;
use batches::Batch;
use calls::{Answer, Caller};
use mark::Mark;
use output::Claim;
use progress::Progress;
use sink::Sink;

/// Embeds all texts.
pub(crate) async fn run(args: EmbedArgs) -> Result<(), Failure> {
    let texts = Texts::open(args.texts.clone(), &args.input)?;
    let gateway = args.remote.connect().await?;
    let model = gateway.model_for(args.model.as_deref(), Purpose::Embed).await?;
    let job = Job::new(&args, model);
    let mut claim = None;
    if let Some(path) = &args.output.path {
        claim = Claim::open(path, &args.output, &job.settings)?;
        if claim.is_none() {
            print::note(format_args!("{} is complete, there is nothing to resume", path.display()));
            return Ok(());
        }
    }
    let done = claim.as_ref().and_then(|claim| claim.mark.clone());
    let progress = Progress::new(&texts, done.as_ref(), claim.is_some());
    let batches = batches::spawn(texts, (args.batch_texts, args.in_flight), done.as_ref())?;
    let caller = Caller::new(gateway, job.template.clone(), args.patience());
    Run { args, job, claim, caller, progress }.finish(batches, done).await
}

/// Everything one run needs.
struct Run {
    args: EmbedArgs,
    job: Job,
    claim: Option<Claim>,
    caller: Caller,
    progress: Progress,
}

impl Run {
    async fn finish(
        mut self,
        mut batches: mpsc::Receiver<Result<Batch, Failure>>,
        done: Option<Mark>,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        let first = match self.first(&mut batches, done.as_ref()).await {
            Ok(first) => first,
            Err(failure) => {
                self.claim.into_iter().for_each(Claim::release);
                return Err(failure);
            }
        };
        let mut sink = self.open(first.as_ref())?;
        let written = self.write_all(&mut sink, first, batches).await;
        self.progress.finish();
        // What was answered before a failure is kept.
        let kept = sink.settle();
        if let (Err(_), Ok(()), Some(path)) = (&written, &kept, &self.args.output.path) {
            let done = print::count(sink.mark().count, "text");
            print::note(format_args!("{} holds {done} so far, --resume goes on from there", path.display()));
        }
        written.and(kept)?;
        let mark = sink.finish()?;
        self.tell(&mark, begun.elapsed())
    }

    /// The first answer; nothing where all was done before.
    ///
    /// Its call is made alone: until it is answered, no other could say which checkpoint it requires.
    async fn first(
        &self,
        batches: &mut mpsc::Receiver<Result<Batch, Failure>>,
        done: Option<&Mark>,
    ) -> Result<Option<Answer>, Failure> {
        let digest = done.map(|mark| mark.provenance.digest.as_str());
        match batches.recv().await.transpose()? {
            Some(batch) => self.caller.embed(batch, digest).await.map(Some),
            None if done.is_none() => Err(Failure::Usage("there are no texts".to_owned())),
            None => Ok(None),
        }
    }

    fn open(&mut self, first: Option<&Answer>) -> Result<Sink, Failure> {
        match (self.claim.take(), first) {
            (Some(claim), first) => claim.begin(&self.job, first).map(Box::new).map(Sink::File),
            (None, Some(first)) => Ok(Sink::stdout(self.args.remote.json, Mark::new(&self.job, first))),
            (None, None) => Err(Failure::Usage("there are no texts".to_owned())),
        }
    }

    async fn write_all(
        &mut self,
        sink: &mut Sink,
        first: Option<Answer>,
        batches: mpsc::Receiver<Result<Batch, Failure>>,
    ) -> Result<(), Failure> {
        let digest = sink.mark().provenance.digest.clone();
        if let Some(first) = first {
            self.write(sink, &first)?;
        }
        let caller = self.caller.clone();
        let embed = |batch: Result<Batch, Failure>| async { caller.embed(batch?, Some(&digest)).await };
        let mut answers = std::pin::pin!(stream_of(batches).map(embed).buffered(self.args.in_flight));
        while let Some(answer) = answers.next().await {
            self.write(sink, &answer?)?;
        }
        Ok(())
    }

    fn write(&mut self, sink: &mut Sink, answer: &Answer) -> Result<(), Failure> {
        sink.write(answer)?;
        self.progress.advance(answer);
        Ok(())
    }

    /// What was done, by which checkpoint.
    fn tell(&self, mark: &Mark, elapsed: Duration) -> Result<(), Failure> {
        let provenance = &mark.provenance;
        if let (Some(path), true) = (&self.args.output.path, self.args.remote.json) {
            return print::json(&json!({
                "output": path,
                "model": provenance.model,
                "digest": provenance.digest,
                "index_space": provenance.index_space,
                "dimensions": provenance.dimensions,
                "encoding": self.job.encoding.name(),
                "texts": mark.count,
                "tokens": mark.tokens,
                "seconds": elapsed.as_secs_f64(),
            }));
        }
        if !self.args.remote.json {
            print::note(format_args!(
                "{}, {}, {} dimensions by {}@{}",
                print::count(mark.count, "text"),
                print::count(mark.tokens, "token"),
                provenance.dimensions,
                print::printable(&provenance.model, 80),
                print::short(&provenance.digest),
            ));
        }
        Ok(())
    }
}

fn stream_of<T>(mut receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::poll_fn(move |task| receiver.poll_recv(task))
}
