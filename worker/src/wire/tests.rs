use model::{Sequence, Token, TokenizeError};

use super::*;
use crate::tokenise::Tokenise;

struct Unused;

impl Tokenise for Unused {
    fn encode(&self, _: &str, _: Truncation) -> Result<Sequence, TokenizeError> {
        Err(TokenizeError::Failed("unused".into()))
    }

    fn encode_pair(&self, _: &str, _: &str, _: Truncation) -> Result<Sequence, TokenizeError> {
        Err(TokenizeError::Failed("unused".into()))
    }

    fn tokens(&self, _: &str, _: SpecialTokens) -> Result<Vec<Token>, TokenizeError> {
        Err(TokenizeError::Failed("unused".into()))
    }
}

fn catalogue() -> Catalogue {
    let card = |kind, dimensions| Card {
        kind,
        architecture: "BertModel".into(),
        dimensions,
        max_tokens: 16,
        pooling: None,
        normalize: true,
        query_prompt: Some("query: ".into()),
        document_prompt: None,
    };
    let served = |name: &str, card| Served {
        name: name.into(),
        digest: name.into(),
        index_space: name.into(),
        card,
        dtype: "f32".into(),
        tokenizer: Arc::new(Unused),
    };
    let catalogue = Catalogue::default();
    catalogue.add(served("e", card(Kind::Embedder, 8)).into());
    catalogue.add(served("c", card(Kind::CrossEncoder, 0)).into());
    catalogue
}

fn origin(digest: &str) -> ShardOrigin {
    ShardOrigin { digest: digest.into(), caller: "me".into(), first_input: 40, model: "m".into() }
}

fn embed() -> v1::EmbedRequest {
    v1::EmbedRequest { inputs: vec!["a".into()], ..v1::EmbedRequest::default() }
}

fn rerank() -> v1::RerankRequest {
    v1::RerankRequest { query: "q".into(), documents: vec!["a".into()], ..v1::RerankRequest::default() }
}

fn parse_embed(digest: &str, request: v1::EmbedRequest) -> Result<Embed, CallError> {
    Embed::parse(EmbedShard { origin: Some(origin(digest)), request: Some(request) }, &catalogue())
}

fn parse_rerank(digest: &str, request: v1::RerankRequest) -> Result<Rerank, CallError> {
    Rerank::parse(RerankShard { origin: Some(origin(digest)), request: Some(request) }, &catalogue())
}

#[track_caller]
fn check_invalid<T: fmt::Debug>(found: Result<T, CallError>, field: &str, fault: Fault) {
    let found = found.unwrap_err();
    let CallError::Invalid(found) = found else { panic!("{found:?}") };
    assert_eq!(found, invalid(field, fault));
}

#[test]
fn a_plain_request_takes_the_checkpoints_defaults() {
    let parsed = parse_embed("e", embed()).unwrap();
    assert_eq!(parsed.form, Form { encoding: Encoding::F32, dimensions: 8, length: Length::One });
    assert_eq!((parsed.truncation, parsed.class), (Truncation::None, Class::Interactive));
    assert_eq!((parsed.prompt, parsed.origin.first, &*parsed.origin.caller), (None, 40, "me"));
}

#[test]
fn a_request_says_otherwise() {
    let request = v1::EmbedRequest {
        encoding: v1::Encoding::Int8.into(),
        dimensions: Some(3),
        normalize: Some(false),
        truncation: v1::Truncation::Start.into(),
        priority: v1::Priority::Bulk.into(),
        outputs: vec![v1::Output::Dense.into()],
        ..embed()
    };
    let parsed = parse_embed("e", request).unwrap();
    assert_eq!(parsed.form, Form { encoding: Encoding::Int8, dimensions: 3, length: Length::AsMade });
    assert_eq!((parsed.truncation, parsed.class), (Truncation::Start, Class::Bulk));
}

#[test]
fn an_instruction_replaces_the_prompt() {
    #[track_caller]
    fn check(input_type: v1::InputType, instruction: Option<&str>, expected: Option<&str>) {
        let instruction = instruction.map(str::to_owned);
        let request = v1::EmbedRequest { input_type: input_type.into(), instruction, ..embed() };
        assert_eq!(parse_embed("e", request).unwrap().prompt.as_deref(), expected);
    }
    check(v1::InputType::Unspecified, None, None);
    check(v1::InputType::Query, None, Some("query: "));
    check(v1::InputType::Document, None, None);
    check(v1::InputType::Query, Some("find: "), Some("find: "));
    check(v1::InputType::Query, Some(""), Some(""));
    assert_eq!(prompted(Some("find: "), "x".into()), "find: x");
    assert_eq!(prompted(Some(""), "x".into()), "x");
    assert_eq!(prompted(None, "x".into()), "x");
}

#[test]
fn the_field_at_fault_is_named() {
    let check = |request, field: &str, fault| check_invalid(parse_embed("e", request), field, fault);
    check(v1::EmbedRequest::default(), "inputs", Fault::Missing);
    check(v1::EmbedRequest { input_type: 9, ..embed() }, "input_type", Fault::Unknown(9));
    check(v1::EmbedRequest { encoding: -1, ..embed() }, "encoding", Fault::Unknown(-1));
    check(v1::EmbedRequest { truncation: 7, ..embed() }, "truncation", Fault::Unknown(7));
    check(v1::EmbedRequest { priority: 7, ..embed() }, "priority", Fault::Unknown(7));
    check(v1::EmbedRequest { outputs: vec![1, 5], ..embed() }, "outputs[1]", Fault::Unknown(5));
    for asked in [0, 9] {
        let request = v1::EmbedRequest { dimensions: Some(asked), ..embed() };
        check(request, "dimensions", Fault::Dimensions { asked, max: 8 });
    }
    check_invalid(parse_embed("c", embed()), "model", Fault::NoVectors);
    check_invalid(Embed::parse(EmbedShard::default(), &catalogue()), "origin", Fault::Missing);
    let shard = EmbedShard { origin: Some(origin("e")), request: None };
    check_invalid(Embed::parse(shard, &catalogue()), "request", Fault::Missing);
}

#[test]
fn a_checkpoint_that_is_not_here_comes_before_every_other_fault() {
    let found = parse_embed("x", v1::EmbedRequest::default()).unwrap_err();
    assert!(matches!(found, CallError::NotLoaded { digest, .. } if digest == "x"));
    assert!(matches!(parse_rerank("x", rerank()), Err(CallError::NotLoaded { .. })));
}

#[test]
fn scoring_follows_the_kind_of_checkpoint() {
    #[track_caller]
    fn check(digest: &str, form: v1::ScoreForm, expected: Scoring) {
        let request = v1::RerankRequest { score_form: form.into(), ..rerank() };
        assert_eq!(parse_rerank(digest, request).unwrap().scoring, expected);
    }
    check("c", v1::ScoreForm::Unspecified, Scoring::Sigmoid);
    check("c", v1::ScoreForm::Sigmoid, Scoring::Sigmoid);
    check("c", v1::ScoreForm::Raw, Scoring::Logit);
    check("e", v1::ScoreForm::Unspecified, Scoring::DotProduct);
    check("e", v1::ScoreForm::Raw, Scoring::DotProduct);
    let sigmoid = v1::RerankRequest { score_form: v1::ScoreForm::Sigmoid.into(), ..rerank() };
    check_invalid(parse_rerank("e", sigmoid), "score_form", Fault::NoSigmoid);
    check_invalid(parse_rerank("e", v1::RerankRequest::default()), "documents", Fault::Missing);
}

#[test]
fn the_query_gets_its_prompt() {
    assert_eq!(parse_rerank("e", rerank()).unwrap().query, "query: q");
    let request = v1::RerankRequest { instruction: Some("find: ".into()), ..rerank() };
    assert_eq!(parse_rerank("e", request).unwrap().query, "find: q");
}

#[test]
fn tokens_may_be_asked_of_empty_texts() {
    let request = v1::CountRequest { inputs: vec![String::new()], ..v1::CountRequest::default() };
    let shard = CountShard { origin: Some(origin("c")), request: Some(request) };
    let parsed = Tokens::parse_count(shard, &catalogue()).unwrap();
    assert_eq!((parsed.texts.len(), parsed.special), (1, SpecialTokens::Keep));
    let shard = TokenizeShard { origin: Some(origin("c")), request: Some(v1::TokenizeRequest::default()) };
    check_invalid(Tokens::parse(shard, &catalogue()), "inputs", Fault::Missing);
}
