//! `beige tokens`: what a model reads in texts.

use clap::Args;
use proto::v1::{CountRequest, CountResponse, TokenizeRequest, TokenizeResponse};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::print;
use crate::remote::{Gateway, Purpose, Remote};
use crate::texts::{InputArgs, Texts};

const AFTER_HELP: &str = "\
Examples:
  beige tokens \"What is the BGE family?\"
  beige tokens --count --input passages.txt
  beige tokens --without-special-tokens --json \"two words\"";

/// Show the tokens a model reads in texts.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TokensArgs {
    /// The texts
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Only say how many there are
    #[arg(long)]
    count: bool,
    /// Leave out the tokens that stand for no text, such as `[CLS]`
    #[arg(long)]
    without_special_tokens: bool,
    /// The model, or MODEL@DIGEST; by default the only one there is
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    remote: Remote,
}

/// Prints one line per text.
pub(crate) async fn run(args: TokensArgs) -> Result<(), Failure> {
    let texts = Texts::open(args.texts.clone(), &args.input)?;
    let inputs = texts.map(|item| item.map(|item| item.text)).collect::<Result<Vec<String>, Failure>>()?;
    let gateway = args.remote.connect().await?;
    let model = gateway.model_for(args.model.as_deref(), Purpose::Any).await?;
    if args.count {
        count(&args, &gateway, (model, inputs)).await
    } else {
        list(&args, &gateway, (model, inputs)).await
    }
}

async fn count(args: &TokensArgs, gateway: &Gateway, asked: (String, Vec<String>)) -> Result<(), Failure> {
    let (model, inputs) = asked;
    let without_special_tokens = args.without_special_tokens;
    let request = gateway.request(CountRequest { model, inputs, without_special_tokens });
    let CountResponse { provenance, counts } = gateway.tokens().count(request).await?.into_inner();
    if args.remote.json {
        let provenance = provenance.unwrap_or_default();
        return print::json(
            &json!({ "model": provenance.model, "digest": provenance.digest, "counts": counts }),
        );
    }
    counts.iter().try_for_each(print::line)
}

async fn list(args: &TokensArgs, gateway: &Gateway, asked: (String, Vec<String>)) -> Result<(), Failure> {
    let (model, inputs) = asked;
    let without_special_tokens = args.without_special_tokens;
    let request = gateway.request(TokenizeRequest { model, inputs, without_special_tokens });
    let answer = gateway.tokens().tokenize(request).await?.into_inner();
    if args.remote.json {
        return print::json(&object(&answer));
    }
    for sequence in &answer.sequences {
        let tokens: Vec<String> = sequence
            .tokens
            .iter()
            .map(|token| format!("{}:{}", print::printable(&token.text, 60), token.id))
            .collect();
        print::line(format_args!("{}  {}", tokens.len(), tokens.join(" ")))?;
    }
    Ok(())
}

fn object(answer: &TokenizeResponse) -> Value {
    let token = |token: &proto::v1::Token| {
        json!({
            "id": token.id,
            "text": token.text,
            "special": token.special,
            "start": token.start,
            "end": token.end,
        })
    };
    let sequences: Vec<Vec<Value>> =
        answer.sequences.iter().map(|sequence| sequence.tokens.iter().map(token).collect()).collect();
    let provenance = answer.provenance.clone().unwrap_or_default();
    json!({ "model": provenance.model, "digest": provenance.digest, "sequences": sequences })
}
