//! `beige rerank`: documents in the order in which they answer a query.

use std::time::Duration;

use clap::{Args, ValueEnum};
use proto::v1::{RerankRequest, RerankResponse, ScoreForm, Scoring, Truncation};
use publisher::persist;
use serde_json::{Value, json};

use crate::failure::{Failure, waiting};
use crate::print;
use crate::remote::{Purpose, Remote};
use crate::texts::{InputArgs, Item, Texts};

/// How long a call is tried again: someone waits for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

const AFTER_HELP: &str = "\
Documents are arguments, lines of --input, or lines of standard input.

Examples:
  beige rerank --query \"capital of France\" \"Paris is in France.\" \"Cats sleep a lot.\"
  beige rerank --query \"who wrote it?\" --input passages.jsonl --field body --top-n 5
  grep -h error *.log | beige rerank --query \"disk full\" --top-n 3 --json";

/// Order documents by how well they answer a query.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RerankArgs {
    /// The documents
    #[arg(value_name = "DOC")]
    documents: Vec<String>,
    /// The question
    #[arg(long, short, value_name = "TEXT")]
    query: String,
    /// Show only the best N
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top_n: Option<u32>,
    /// Show raw scores: the logit of a cross-encoder instead of a number in (0, 1)
    #[arg(long)]
    raw: bool,
    /// The model, or MODEL@DIGEST; by default the only one there is
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// Put in front of the query, in place of the model's own instruction
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
    /// What happens to documents beyond the model's window
    #[arg(long, value_enum, default_value_t = Truncate::None)]
    truncate: Truncate,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    remote: Remote,
}

/// What happens to texts beyond the model's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Truncate {
    /// Cut at the end
    End,
    /// Cut at the start
    Start,
    /// Refuse the call
    None,
}

impl Truncate {
    /// As it travels.
    pub(crate) fn to_wire(self) -> Truncation {
        match self {
            Self::End => Truncation::End,
            Self::Start => Truncation::Start,
            Self::None => Truncation::None,
        }
    }
}

/// Scores the documents and prints their order.
pub(crate) async fn run(args: RerankArgs) -> Result<(), Failure> {
    let documents =
        Texts::open(args.documents.clone(), &args.input)?.collect::<Result<Vec<Item>, Failure>>()?;
    let gateway = args.remote.connect().await?;
    let request = RerankRequest {
        model: gateway.model_for(args.model.as_deref(), Purpose::Rerank).await?,
        query: args.query,
        documents: documents.iter().map(|document| document.text.clone()).collect(),
        top_n: args.top_n,
        score_form: if args.raw { ScoreForm::Raw.into() } else { ScoreForm::Unspecified.into() },
        instruction: args.instruction,
        truncation: args.truncate.to_wire().into(),
        ..RerankRequest::default()
    };
    let call = async || gateway.reranking().rerank(gateway.request(request.clone())).await;
    let answer = persist(PATIENCE, waiting, call).await?.into_inner();
    let ranked = ranked(&answer, &documents)?;
    if args.remote.json { print::json(&object(&answer, &ranked)) } else { show(&answer, &ranked) }
}

/// A document, its position and its score.
type Ranked<'a> = (u32, f32, &'a Item);

/// Positions come from the server, so they are checked.
fn ranked<'a>(answer: &RerankResponse, documents: &'a [Item]) -> Result<Vec<Ranked<'a>>, Failure> {
    let find = |ranking: &proto::v1::Ranking| {
        let place = usize::try_from(ranking.index).ok();
        let document = place.and_then(|place| documents.get(place));
        let document = document.ok_or_else(|| {
            Failure::Refused(format!("the server ranked document {}, which is none", ranking.index))
        })?;
        Ok((ranking.index, ranking.score, document))
    };
    answer.rankings.iter().map(find).collect()
}

fn object(answer: &RerankResponse, ranked: &[Ranked<'_>]) -> Value {
    let results = ranked.iter().map(|(index, score, document)| {
        let mut result = json!({ "index": index, "score": score, "text": document.text });
        if let Some(id) = &document.id {
            result["id"] = id.clone();
        }
        result
    });
    let provenance = answer.provenance.clone().unwrap_or_default();
    json!({
        "model": provenance.model,
        "digest": provenance.digest,
        "scoring": scoring(answer.scoring()),
        "score_form": form(answer.score_form()),
        "tokens": answer.usage.unwrap_or_default().tokens,
        "results": results.collect::<Vec<_>>(),
    })
}

fn show(answer: &RerankResponse, ranked: &[Ranked<'_>]) -> Result<(), Failure> {
    let mut table = print::table(&["RANK", "SCORE", "DOC", "TEXT"], &[0, 1, 2]);
    for (rank, (index, score, document)) in ranked.iter().enumerate() {
        let text = print::printable(&document.text, 80);
        table.add_row([(rank + 1).to_string(), format!("{score:.4}"), index.to_string(), text]);
    }
    print::rows(&table)?;
    let provenance = answer.provenance.clone().unwrap_or_default();
    print::note(format_args!(
        "{} by {}@{}, {}",
        scoring(answer.scoring()),
        print::printable(&provenance.model, 80),
        print::short(&provenance.digest),
        print::count(answer.usage.unwrap_or_default().tokens, "token"),
    ));
    Ok(())
}

fn scoring(scoring: Scoring) -> &'static str {
    match scoring {
        Scoring::Unspecified => "unknown",
        Scoring::CrossEncoder => "cross-encoder",
        Scoring::Dense => "dense",
    }
}

fn form(form: ScoreForm) -> &'static str {
    match form {
        ScoreForm::Unspecified => "unknown",
        ScoreForm::Raw => "raw",
        ScoreForm::Sigmoid => "sigmoid",
    }
}
