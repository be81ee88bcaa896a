use proto::v1;
use proto::worker::v1::{CountShard, RerankShard, TokenizeShard};

use super::support::{CROSS_ENCODER, EMBEDDER, Options, embed, floats, origin, request, shard, start};

#[tokio::test]
async fn vectors_come_in_the_order_of_the_texts() {
    let mut stand = start(Options { batch_tokens: 30, ..Options::default() }).await;
    let texts: Vec<String> = (0..100).map(|i| format!("w{i} {}", "x ".repeat(i % 9))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let result = stand.client.embed(embed(&texts)).await.unwrap().into_inner();
    let row = |i: u8| [f32::from(3 + i % 9), f32::from(i), 1.0, 1.0];
    assert_eq!(floats(&result.dense.unwrap()), (0..100).flat_map(row).collect::<Vec<_>>());
    assert!(result.input_tokens.iter().copied().eq((0..100).map(|i| 3 + i % 9)));
    let provenance = result.provenance.unwrap();
    assert_eq!((&*provenance.digest, provenance.dimensions), (EMBEDDER, 4));
    assert_eq!(provenance.index_space, "space of embedder");
    assert_eq!(stand.load.waiting(), 0);
}

#[tokio::test]
async fn vectors_are_cut_normalised_and_encoded_as_asked() {
    let mut stand = start(Options::default()).await;
    let asked = v1::EmbedRequest {
        dimensions: Some(2),
        normalize: Some(true),
        encoding: v1::Encoding::Int8.into(),
        ..request(&["w4"])
    };
    let dense = stand.client.embed(shard(asked)).await.unwrap().into_inner().dense.unwrap();
    // Three tokens, the first word 4: a triangle of 3, 4, 5.
    assert_eq!((dense.dimensions, &dense.data[..]), (2, &[95, 127][..]));
    assert!((dense.scales[0] - 0.8 / 127.0).abs() < 1e-6);
}

#[tokio::test]
async fn a_query_gets_the_checkpoints_prompt() {
    let mut stand = start(Options::default()).await;
    let asked = v1::EmbedRequest { input_type: v1::InputType::Query.into(), ..request(&["w4"]) };
    let result = stand.client.embed(shard(asked)).await.unwrap().into_inner();
    assert_eq!(floats(&result.dense.unwrap()), [4.0, 50.0, 1.0, 1.0]);
}

fn rerank(digest: &str, form: v1::ScoreForm) -> RerankShard {
    let request = v1::RerankRequest {
        query: "w2".into(),
        documents: vec!["w1 w1 w1".into(), "w3 w3".into()],
        instruction: Some(String::new()),
        score_form: form.into(),
        ..v1::RerankRequest::default()
    };
    RerankShard { origin: Some(origin(digest)), request: Some(request) }
}

#[tokio::test]
async fn a_cross_encoder_scores_pairs() {
    let mut stand = start(Options::default()).await;
    let raw = stand.client.rerank(rerank(CROSS_ENCODER, v1::ScoreForm::Raw)).await.unwrap().into_inner();
    assert_eq!((raw.scores.as_slice(), raw.tokens), (&[1.0, 0.0][..], 7 + 6));
    assert_eq!((raw.scoring(), raw.score_form()), (v1::Scoring::CrossEncoder, v1::ScoreForm::Raw));
    let usual = rerank(CROSS_ENCODER, v1::ScoreForm::Unspecified);
    let usual = stand.client.rerank(usual).await.unwrap().into_inner();
    assert_eq!((usual.scores[1], usual.score_form()), (0.5, v1::ScoreForm::Sigmoid));
}

#[tokio::test]
async fn an_embedding_model_reads_the_query_once() {
    let mut stand = start(Options::default()).await;
    let scored =
        stand.client.rerank(rerank(EMBEDDER, v1::ScoreForm::Unspecified)).await.unwrap().into_inner();
    // Query (3, 2, 1, 1) by documents (5, 1, 1, 1) and (4, 3, 1, 1).
    assert_eq!((scored.scores.as_slice(), scored.tokens), (&[19.0, 20.0][..], 3 + 5 + 4));
    assert_eq!((scored.scoring(), scored.score_form()), (v1::Scoring::Dense, v1::ScoreForm::Raw));
    assert_eq!(stand.control.runs().concat().len(), 3);
}

#[tokio::test]
async fn tokens_and_counts_need_no_device() {
    let mut stand = start(Options::default()).await;
    stand.control.hold();
    let inputs = vec!["w1 w2".to_owned(), String::new()];
    let asked = v1::TokenizeRequest { inputs: inputs.clone(), ..v1::TokenizeRequest::default() };
    let asked = TokenizeShard { origin: Some(origin(CROSS_ENCODER)), request: Some(asked) };
    let answer = stand.client.tokenize(asked).await.unwrap().into_inner();
    let tokens = &answer.sequences[0].tokens;
    assert!(tokens.iter().map(|token| token.id).eq([101, 1, 2, 102]));
    assert_eq!((tokens[0].special, tokens[0].end, tokens[1].end), (true, 0, 4));
    let asked = v1::CountRequest { inputs, without_special_tokens: true, ..v1::CountRequest::default() };
    let asked = CountShard { origin: Some(origin(EMBEDDER)), request: Some(asked) };
    assert_eq!(stand.client.count(asked).await.unwrap().into_inner().counts, [2, 0]);
}

#[tokio::test]
async fn a_text_above_the_batch_is_late_and_not_stuck() {
    let mut stand = start(Options { batch_tokens: 5, ..Options::default() }).await;
    let long = "w1 ".repeat(30);
    let result = stand.client.embed(embed(&["w2", &long, "w3"])).await.unwrap().into_inner();
    assert_eq!(result.input_tokens, [3, 32, 3]);
}
