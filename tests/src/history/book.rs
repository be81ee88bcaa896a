//! What each checkpoint answers to each question: by it, a vector tells who made it.

use std::collections::HashMap;
use std::path::PathBuf;

use tonic::Request;

use super::ask;
use super::record::Digest;
use crate::{Cluster, Golden};

/// What arithmetic in another order may change; see `tests/golden/README.md`.
const TOLERANCE: f32 = 1e-5;

/// Answers of two checkpoints to a question that is asked differ by this at least: no number is taken for another.
const APART: f32 = 5.0 * TOLERANCE;

/// Queries that documents are ranked for.
const QUERIES: usize = 3;

/// What a number, or a vector, is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// A text, by its place in the book.
    Vector(usize),
    /// A query and a document, by their places.
    Score(usize, usize),
}

/// The answers of some checkpoints.
#[derive(Clone, Debug)]
pub struct Book {
    /// In the order in which their directories were given.
    pub digests: Vec<Digest>,
    pub(super) texts: Vec<String>,
    answers: HashMap<Digest, HashMap<Question, Vec<f32>>>,
    /// Texts whose vectors tell all checkpoints apart.
    vectors: Vec<usize>,
    /// For each query, the documents whose scores do.
    scores: Vec<Vec<usize>>,
}

impl Book {
    /// Asks each checkpoint all there is to ask, by its own name in a quiet cluster of its own.
    pub async fn of(checkpoints: &[PathBuf]) -> Self {
        let named = |(i, dir): (usize, &PathBuf)| format!("checkpoint-{i}={}", dir.display());
        let models: Vec<String> = checkpoints.iter().enumerate().map(named).collect();
        let cluster = Cluster::start(1, &models).await;
        let mut book = Self {
            digests: Vec::new(),
            texts: Golden::read("bert-cls").readable().texts,
            answers: HashMap::new(),
            vectors: Vec::new(),
            scores: Vec::new(),
        };
        for i in 0..checkpoints.len() {
            book.learn(&cluster, &format!("checkpoint-{i}")).await;
        }
        book.sift();
        book
    }

    async fn learn(&mut self, cluster: &Cluster, model: &str) {
        let (channel, texts) = (cluster.channel(), self.texts.clone());
        let said = ask::embed(&channel, Request::new(ask::embedding(model, texts.clone(), 0))).await.unwrap();
        let digest = said.digest;
        let rows = said.rows.into_iter().enumerate();
        let mut answers: HashMap<_, _> = rows.map(|(i, row)| (Question::Vector(i), row)).collect();
        for query in 0..QUERIES {
            let request = ask::ranking(model, texts[query].clone(), texts.clone(), 0);
            let said = ask::rerank(&channel, Request::new(request)).await.unwrap();
            let rows = said.rows.into_iter().enumerate();
            answers.extend(rows.map(|(document, row)| (Question::Score(query, document), row)));
        }
        self.digests.push(digest.clone());
        assert!(self.answers.insert(digest, answers).is_none(), "{model} has the bytes of another one");
    }

    /// Keeps the questions to which no two checkpoints answer alike.
    fn sift(&mut self) {
        let count = self.texts.len();
        self.vectors = (0..count).filter(|&i| self.tells_apart(Question::Vector(i))).collect();
        let documents =
            |query| (0..count).filter(|&i| self.tells_apart(Question::Score(query, i))).collect::<Vec<_>>();
        self.scores = (0..QUERIES).map(documents).collect();
        let fewest = self.scores.iter().chain([&self.vectors]).map(Vec::len).min();
        assert!(fewest >= Some(8), "checkpoints answer alike: {fewest:?} questions tell them apart");
    }

    fn tells_apart(&self, question: Question) -> bool {
        let answers: Vec<_> = self.answers.values().map(|answers| &answers[&question]).collect();
        let mut pairs =
            answers.iter().enumerate().flat_map(|(i, a)| answers[..i].iter().map(move |b| (a, b)));
        pairs.all(|(a, b)| distance(a, b) > APART)
    }

    /// The checkpoint whose answer to `question` this is; `None` where it is nobody's.
    pub(super) fn made_by(&self, question: Question, row: &[f32]) -> Option<Digest> {
        let mut makers =
            self.answers.iter().filter(|(_, answers)| distance(&answers[&question], row) < TOLERANCE);
        makers.next().map(|(digest, _)| digest.clone())
    }

    /// Gives each of two checkpoints the other's answers: a lie, by which it is shown that lies are found.
    pub fn exchange(&mut self, a: &Digest, b: &Digest) {
        let [Some(a), Some(b)] = self.answers.get_disjoint_mut([a, b]) else {
            panic!("both are in the book")
        };
        std::mem::swap(a, b);
    }

    /// The lowest cosine of the vectors that two checkpoints make of a text.
    pub fn lowest_cosine(&self, a: &Digest, b: &Digest) -> f32 {
        let of = |digest, i| &self.answers[digest][&Question::Vector(i)];
        let cosines = (0..self.texts.len()).map(|i| cosine(of(a, i), of(b, i)));
        cosines.fold(1.0, f32::min)
    }

    /// `count` texts to embed, other ones for another `turn`.
    pub(super) fn vectors(&self, turn: usize, count: usize) -> Vec<usize> {
        pick(&self.vectors, turn, count)
    }

    /// A query and `count` documents to rank for it, others for another `turn`.
    pub(super) fn scores(&self, turn: usize, count: usize) -> (usize, Vec<usize>) {
        let query = turn % QUERIES;
        (query, pick(&self.scores[query], turn, count))
    }
}

fn pick(from: &[usize], turn: usize, count: usize) -> Vec<usize> {
    from.iter().cycle().skip(turn % from.len()).take(count).copied().collect()
}

/// The largest difference between two numbers of the same place.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
