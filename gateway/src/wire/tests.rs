//! Each bad request, and the field and fault it is refused for.

use super::*;

const LIMITS: Limits = Limits { inputs: 4, text_bytes: 16 };

fn embed() -> v1::EmbedRequest {
    v1::EmbedRequest { model: "mini".into(), inputs: vec!["a text".into()], ..v1::EmbedRequest::default() }
}

fn rerank() -> v1::RerankRequest {
    v1::RerankRequest {
        model: "mini".into(),
        query: "a query".into(),
        documents: vec!["one".into()],
        ..v1::RerankRequest::default()
    }
}

fn hex(digit: &str) -> String {
    digit.repeat(64)
}

fn card(kind: Kind) -> Card {
    Card { kind, checkpoint: v1::Checkpoint { dimensions: 384, ..v1::Checkpoint::default() } }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(parsed: Result<T, InvalidRequest>, field: &str, fault: Fault) {
    assert_eq!(parsed.unwrap_err(), InvalidRequest { field: field.to_owned(), fault });
}

#[track_caller]
fn embed_refused(change: impl FnOnce(&mut v1::EmbedRequest), field: &str, fault: Fault) {
    let mut wire = embed();
    change(&mut wire);
    refused(EmbedJob::parse(wire, &LIMITS), field, fault);
}

#[track_caller]
fn rerank_refused(change: impl FnOnce(&mut v1::RerankRequest), field: &str, fault: Fault) {
    let mut wire = rerank();
    change(&mut wire);
    refused(RerankJob::parse(wire, &LIMITS), field, fault);
}

fn no_digest() -> Fault {
    Fault::Malformed("a digest is 64 lower-case hexadecimal digits".into())
}

#[test]
fn a_good_request_keeps_all_it_came_with() {
    let mut wire = embed();
    wire.dimensions = Some(64);
    wire.priority = v1::Priority::Bulk.into();
    let job = EmbedJob::parse(wire.clone(), &LIMITS).unwrap();
    assert_eq!(job.terms.class, Class::Bulk);
    assert_eq!(job.terms.model.as_str(), "mini");
    assert_eq!(job.inputs, wire.inputs);
    assert_eq!(job.form, v1::EmbedRequest { inputs: Vec::new(), ..wire });

    let job = RerankJob::parse(v1::RerankRequest { top_n: Some(9), ..rerank() }, &LIMITS).unwrap();
    assert_eq!((job.terms.class, job.top_n), (Class::Interactive, Some(9)));
    assert_eq!(job.documents, ["one"]);
    assert_eq!(job.form, v1::RerankRequest { documents: Vec::new(), ..rerank() });
}

#[test]
fn texts_are_there_and_can_be_read() {
    embed_refused(|r| r.inputs.clear(), "inputs", Fault::Empty);
    embed_refused(|r| r.inputs = vec!["x".into(); 5], "inputs", Fault::TooMany { got: 5, max: 4 });
    embed_refused(|r| r.inputs.push(String::new()), "inputs[1]", Fault::Empty);
    for blank in [" ", "\n\t\r", "\u{0}", "\u{1b}\u{7f}", "\u{200b}\u{feff}", "\u{3000}"] {
        embed_refused(|r| r.inputs.push(blank.into()), "inputs[1]", Fault::Blank);
    }
    let long = "x".repeat(17);
    embed_refused(|r| r.inputs.push(long.clone()), "inputs[1]", Fault::TooLong { bytes: 17, max: 16 });
    embed_refused(
        |r| r.instruction = Some(long.clone()),
        "instruction",
        Fault::TooLong { bytes: 17, max: 16 },
    );

    rerank_refused(|r| r.query.clear(), "query", Fault::Empty);
    rerank_refused(|r| r.query = "\u{7}".into(), "query", Fault::Blank);
    rerank_refused(|r| r.documents.clear(), "documents", Fault::Empty);
    rerank_refused(|r| r.documents.push(" ".into()), "documents[1]", Fault::Blank);
    rerank_refused(|r| r.documents.push(long), "documents[1]", Fault::TooLong { bytes: 17, max: 16 });
    rerank_refused(|r| r.documents = vec!["x".into(); 5], "documents", Fault::TooMany { got: 5, max: 4 });
}

#[test]
fn one_document_and_equal_documents_are_fine() {
    let wire = v1::RerankRequest { documents: vec!["same".into(); 4], ..rerank() };
    assert!(RerankJob::parse(wire, &LIMITS).is_ok());
    assert!(RerankJob::parse(rerank(), &LIMITS).is_ok());
}

#[test]
fn enum_numbers_are_known() {
    embed_refused(|r| r.input_type = 77, "input_type", Fault::Unknown(77));
    embed_refused(|r| r.outputs = vec![1, -3], "outputs[1]", Fault::Unknown(-3));
    embed_refused(|r| r.encoding = 5, "encoding", Fault::Unknown(5));
    embed_refused(|r| r.truncation = 4, "truncation", Fault::Unknown(4));
    embed_refused(|r| r.priority = 3, "priority", Fault::Unknown(3));
    rerank_refused(|r| r.score_form = 9, "score_form", Fault::Unknown(9));
    rerank_refused(|r| r.truncation = i32::MAX, "truncation", Fault::Unknown(i32::MAX));
    rerank_refused(|r| r.priority = -1, "priority", Fault::Unknown(-1));
}

#[test]
fn counts_start_at_one() {
    let zero = || Fault::Outside { got: 0, max: u32::MAX };
    embed_refused(|r| r.dimensions = Some(0), "dimensions", zero());
    rerank_refused(|r| r.top_n = Some(0), "top_n", zero());
}

#[test]
fn models_and_digests_are_well_formed() {
    embed_refused(|r| r.model.clear(), "model", Fault::Empty);
    embed_refused(|r| r.model = format!("@{}", hex("a")), "model", Fault::Empty);
    embed_refused(|r| r.model = "mini@".into(), "model", no_digest());
    embed_refused(|r| r.model = "mini@latest".into(), "model", no_digest());
    embed_refused(|r| r.model = format!("mini@{}", hex("A")), "model", no_digest());
    embed_refused(
        |r| r.require = Some(v1::Require { what: Some(v1::require::What::Digest("d".into())), min_epoch: 0 }),
        "require.digest",
        no_digest(),
    );
    rerank_refused(
        |r| {
            r.require =
                Some(v1::Require { what: Some(v1::require::What::IndexSpace(String::new())), min_epoch: 0 });
        },
        "require.index_space",
        Fault::Empty,
    );

    let wire = v1::EmbedRequest { model: format!("mini@{}", hex("0")), ..embed() };
    let terms = EmbedJob::parse(wire, &LIMITS).unwrap().terms;
    assert_eq!((terms.model.as_str(), terms.digest), ("mini", Digest::parse(&hex("0"))));
    let nothing = v1::EmbedRequest { require: Some(v1::Require { what: None, min_epoch: 5 }), ..embed() };
    let terms = EmbedJob::parse(nothing, &LIMITS).unwrap().terms;
    assert_eq!((terms.require, terms.min_epoch), (None, 5));
}

#[test]
fn a_hostile_model_name_is_repeated_short_and_harmless() {
    for model in ["mini\u{1b}[2J".to_owned(), "x".repeat(1 << 20), "a/b".into(), "模型".into()] {
        let error = EmbedJob::parse(v1::EmbedRequest { model, ..embed() }, &LIMITS).unwrap_err();
        assert_eq!(error.field, "model");
        let sentence = error.to_string();
        assert!(sentence.len() < 1000 && !sentence.chars().any(char::is_control), "{sentence}");
    }
}

#[test]
fn tokens_of_an_empty_text_may_be_asked_for() {
    let tokenize =
        |inputs| v1::TokenizeRequest { model: "mini".into(), inputs, without_special_tokens: true };
    assert!(TokenizeJob::parse(tokenize(vec![String::new(), " ".into()]), &LIMITS).is_ok());
    refused(TokenizeJob::parse(tokenize(Vec::new()), &LIMITS), "inputs", Fault::Empty);
    let long = vec!["a".into(), "x".repeat(17)];
    refused(TokenizeJob::parse(tokenize(long), &LIMITS), "inputs[1]", Fault::TooLong { bytes: 17, max: 16 });
    let limits = Limits { inputs: 5, ..LIMITS };
    let many = TokenizeJob::parse(tokenize(vec!["sixteen letters.".into(); 5]), &limits);
    refused(many, "inputs", Fault::TooLong { bytes: 80, max: 64 });
    let count =
        v1::CountRequest { model: String::new(), inputs: vec!["a".into()], without_special_tokens: false };
    refused(CountJob::parse(count, &LIMITS), "model", Fault::Empty);
}

#[test]
fn a_request_fits_what_its_checkpoint_does() {
    let job = EmbedJob::parse(v1::EmbedRequest { dimensions: Some(384), ..embed() }, &LIMITS).unwrap();
    assert_eq!(job.fits(&card(Kind::Embedder)), Ok(()));
    assert_eq!(job.fits(&card(Kind::CrossEncoder)).unwrap_err().field, "model");
    let job = EmbedJob::parse(v1::EmbedRequest { dimensions: Some(385), ..embed() }, &LIMITS).unwrap();
    refused(job.fits(&card(Kind::Embedder)), "dimensions", Fault::Outside { got: 385, max: 384 });

    let sigmoid = v1::RerankRequest { score_form: v1::ScoreForm::Sigmoid.into(), ..rerank() };
    let job = RerankJob::parse(sigmoid, &LIMITS).unwrap();
    assert_eq!(job.fits(&card(Kind::CrossEncoder)), Ok(()));
    assert_eq!(job.fits(&card(Kind::Embedder)).unwrap_err().field, "score_form");
}

#[test]
fn a_refusal_reads_as_a_sentence() {
    let error = invalid("inputs[3]", Fault::TooLong { bytes: 10, max: 9 });
    assert_eq!(error.to_string(), "inputs[3] has 10 bytes, more than the limit of 9");
}
