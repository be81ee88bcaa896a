//! The run's samples, rebuilt from its data files: which examples, which texts of them, which tokens.
//!
//! `samples_rank*.jsonl` holds what the reference fetched, in order. The reference reads a directory in the order in
//! which its file system lists it, which the record does not keep: directories' files are tried in every order.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::batches::Recorded;
use super::hyperparameters::{Hyperparameters, RunKind};
use super::report::Row;
use super::source::Source;
use crate::data::{
    BySet, Collator, Columns, Corpus, Custom, Drawing, Group, JsonLines, Micro, Mixed, Order, Part, Random,
    Reader, Reading, Rest, Stream, Taught, Wording, by_file, files,
};
use crate::error::TrainError;
use crate::objective::Side;

/// Orders of directories' files that are tried at most.
const ORDERS: usize = 720;

/// One line of a samples file.
#[derive(Debug, Deserialize)]
struct Sample {
    index: Option<usize>,
    query: Option<String>,
    queries: Option<Vec<String>>,
    passages: Option<Vec<String>>,
    pairs: Option<Vec<Vec<u32>>>,
    teacher: Option<Vec<f64>>,
    no_in_batch_neg_flag: Option<bool>,
}

/// Rebuilds every rank's samples and batches and counts those that are not as recorded.
///
/// # Errors
/// [`TrainError`] where data files or samples cannot be read.
pub(super) fn compare(
    dir: &Path,
    settings: &Hyperparameters,
    source: &Source,
    batches: &[Vec<Recorded>],
) -> Result<Vec<Row>, TrainError> {
    let collator = match &source.tokenizer {
        None => None,
        Some(tokenizer) => Some(Collator {
            tokenizer: model::Tokenizer::open_bare(tokenizer, &source.config)?,
            query_max_len: settings.data.query_max_len,
            passage_max_len: settings.data.passage_max_len,
            pad_to_multiple_of: settings.data.pad_to_multiple_of,
        }),
    };
    let recorded = (0..settings.world_size)
        .map(|rank| samples(&dir.join(format!("samples_rank{rank}.jsonl"))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut best: Option<[Row; 2]> = None;
    let orders = orders(settings, source)?;
    let columns = columns(orders.first().map_or(&[], Vec::as_slice))?;
    for order in orders {
        let rebuilt = Rebuilt { settings, collator: collator.as_ref(), order, columns: &columns };
        let found = rebuilt.compare(&recorded, batches)?;
        let wrong = |rows: &[Row; 2]| rows.iter().map(|row| row.worst).sum::<f64>();
        let holds = found.iter().all(Row::holds);
        if best.as_ref().is_none_or(|best| wrong(&found) < wrong(best)) {
            best = Some(found);
        }
        if holds {
            break;
        }
    }
    Ok(best.map(Vec::from).unwrap_or_default())
}

fn samples(path: &Path) -> Result<Vec<Sample>, TrainError> {
    let text = fs::read_to_string(path).map_err(|source| TrainError::io(path, source))?;
    let parse = |(line, number): (&str, usize)| {
        serde_json::from_str(line)
            .map_err(|error| TrainError::format(path, format!("line {number}: {error}")))
    };
    text.lines().zip(1..).map(parse).collect()
}

/// Data files by what names them, in every order in which directories may have been listed.
fn orders(settings: &Hyperparameters, source: &Source) -> Result<Vec<Vec<Named>>, TrainError> {
    let mut orders: Vec<Vec<Named>> = vec![Vec::new()];
    for name in &settings.data.train_data {
        let path = source.root.join(name);
        let mut next = Vec::new();
        for files in permutations(files(&path)?) {
            for order in &orders {
                let named = Named { name: name.clone(), files: files.clone() };
                next.push(order.iter().cloned().chain([named]).collect());
            }
        }
        next.truncate(ORDERS);
        orders = next;
    }
    Ok(orders)
}

/// A file or directory that the settings name.
#[derive(Clone, Debug)]
struct Named {
    name: PathBuf,
    files: Vec<PathBuf>,
}

/// What columns each file has.
fn columns(order: &[Named]) -> Result<HashMap<PathBuf, Columns>, TrainError> {
    let files = order.iter().flat_map(|named| &named.files);
    files.map(|path| Ok((path.clone(), JsonLines::open(path)?.columns()?))).collect()
}

fn permutations(items: Vec<PathBuf>) -> Vec<Vec<PathBuf>> {
    let mut all = vec![Vec::new()];
    for item in items {
        let at = |shorter: &Vec<PathBuf>, place: usize| {
            let mut longer = shorter.clone();
            longer.insert(place, item.clone());
            longer
        };
        // The order of names comes first.
        all = all
            .iter()
            .flat_map(|shorter| (0..=shorter.len()).rev().map(move |place| (shorter, place)))
            .map(|(shorter, place)| at(shorter, place))
            .take(ORDERS)
            .collect();
    }
    all
}

struct Rebuilt<'a> {
    settings: &'a Hyperparameters,
    collator: Option<&'a Collator>,
    order: Vec<Named>,
    columns: &'a HashMap<PathBuf, Columns>,
}

impl Rebuilt<'_> {
    fn compare(&self, recorded: &[Vec<Sample>], batches: &[Vec<Recorded>]) -> Result<[Row; 2], TrainError> {
        let mut samples = Row::new("samples rebuilt", Some(0.0));
        let mut tokens = Row::new("token batches rebuilt", Some(0.0));
        for (rank, (recorded, batches)) in recorded.iter().zip(batches).enumerate() {
            let fetched = self.fetch(rank, recorded.len())?;
            let by_sample = fetched.iter().flat_map(|micro| self.samples(micro));
            for (at, (found, sample)) in by_sample.zip(recorded).enumerate() {
                samples.count(self.is_same(&found, sample)?, || format!("rank {rank}, sample {at}"));
            }
            let Some(collator) = self.collator else { continue };
            for (at, (micro, batch)) in fetched.iter().zip(batches).enumerate() {
                let same = self.collates(collator, micro, batch)?;
                tokens.count(same, || format!("rank {rank}, micro step {at}"));
            }
        }
        Ok([samples, tokens])
    }

    /// A micro step as the record has it: an example a line, or where batches are of one file a batch a line.
    fn samples(&self, micro: &Micro) -> Vec<Micro> {
        if self.by_file() {
            return vec![micro.clone()];
        }
        let one = |(&example, group): (&usize, &Group)| Micro {
            examples: vec![example],
            groups: vec![group.clone()],
            own_group: micro.own_group,
        };
        micro.examples.iter().zip(&micro.groups).map(one).collect()
    }

    fn by_file(&self) -> bool {
        self.settings.data.same_dataset_within_batch
    }

    fn drawing(&self) -> Drawing {
        let data = &self.settings.data;
        let reader = match (self.settings.kind, self.by_file()) {
            (RunKind::Reranker, _) => Reader::CrossEncoder,
            (RunKind::Embedder | RunKind::M3, true) => Reader::EmbedderByFile,
            (RunKind::Embedder | RunKind::M3, false) => Reader::Embedder,
        };
        let word = |instruction: &Option<String>, format: &str| Wording {
            instruction: instruction.clone(),
            format: format.to_owned(),
        };
        Drawing {
            query: word(&data.query_instruction_for_retrieval, &data.query_instruction_format),
            passage: word(&data.passage_instruction_for_retrieval, &data.passage_instruction_format),
            shuffle_ratio: data.shuffle_ratio,
            taught: match (data.knowledge_distillation, self.by_file()) {
                (false, _) => Taught::No,
                (true, false) => Taught::Yes,
                (true, true) => Taught::WhereThere,
            },
            reader,
            custom: Custom::FlagEmbedding,
        }
    }

    /// A rank's stream of `count` samples: micro steps, of which each holds one or more.
    fn fetch(&self, rank: usize, count: usize) -> Result<Vec<Micro>, TrainError> {
        let mut stream = self.stream(rank)?;
        let mut fetched = Vec::new();
        let mut samples = 0;
        while samples < count {
            let micro = stream.read()?;
            samples += if self.by_file() { 1 } else { micro.examples.len() };
            fetched.push(micro);
        }
        Ok(fetched)
    }

    fn stream(&self, rank: usize) -> Result<Stream, TrainError> {
        let Hyperparameters { data, training, world_size: ranks, .. } = self.settings;
        let mut loading = Random::new(training.seed);
        let most = data.max_example_num_per_dataset;
        let mut parts = Vec::new();
        for named in &self.order {
            let of_name = named.files.iter().map(|path| Part::open(path, most, &mut loading));
            parts.push(of_name.collect::<Result<Vec<_>, _>>()?);
        }
        let (corpus, order) = if self.by_file() {
            let named = self.order.iter().map(|named| named.name.clone()).zip(parts).collect();
            let thresholds =
                by_file::Thresholds { small: data.small_threshold, dropped: data.drop_threshold };
            let (sets, corpus) = by_file::sets(named, self.settings.batch_size(), thresholds)?;
            (corpus, Order::BySet(BySet::new(sets, *ranks, training.seed)))
        } else {
            let corpus = Corpus::new(parts.concat());
            let rest = if training.dataloader_drop_last { Rest::Dropped } else { Rest::Filled };
            let (examples, seed) = (corpus.len(), training.data_seed.unwrap_or(training.seed));
            let mixed = Mixed { examples, batch: self.settings.batch_size(), ranks: *ranks, rest, seed };
            (corpus, Order::Mixed(mixed))
        };
        // Training seeds anew what loading drew from.
        let reading = Reading { rank, ranks: *ranks, group_size: data.train_group_size, seed: training.seed };
        Stream::new(corpus.as_table(self.columns), self.drawing(), order, reading)
    }

    fn is_same(&self, fetched: &Micro, sample: &Sample) -> Result<bool, TrainError> {
        let queries: Vec<&String> = fetched.groups.iter().map(|group| &group.query).collect();
        let passages: Vec<&String> = fetched.groups.iter().flat_map(|group| &group.passages).collect();
        let recorded = sample.queries.as_deref().or(sample.query.as_ref().map(std::slice::from_ref));
        let texts = recorded.is_none_or(|recorded| recorded.iter().eq(queries))
            && sample.passages.as_ref().is_none_or(|recorded| recorded.iter().eq(passages));
        let pairs = match (&sample.pairs, self.collator) {
            (Some(recorded), Some(collator)) => {
                let ids = pairs(collator, &fetched.groups)?.sequences.into_iter().map(|pair| pair.ids);
                recorded.iter().cloned().eq(ids)
            }
            _ => true,
        };
        let teacher = scores(&fetched.groups);
        let index = sample.index.is_none_or(|index| fetched.examples == [index]);
        let own_group = sample.no_in_batch_neg_flag.is_none_or(|flag| flag == fetched.own_group);
        Ok(index && texts && pairs && own_group && same_scores(teacher.as_ref(), sample.teacher.as_ref()))
    }

    fn collates(&self, collator: &Collator, micro: &Micro, batch: &Recorded) -> Result<bool, TrainError> {
        let groups = &micro.groups;
        let teacher = scores(groups);
        match batch {
            Recorded::Pairs { pairs: recorded, teacher: scores } => {
                let found = pairs(collator, groups)?;
                Ok(found == *recorded && same_scores(teacher.as_ref(), scores.as_ref()))
            }
            Recorded::Texts(texts) => {
                let queries: Vec<String> = groups.iter().map(|group| group.query.clone()).collect();
                let passages: Vec<String> = groups.iter().flat_map(|group| group.passages.clone()).collect();
                let (queries, passages) = (collator.queries(&queries)?, collator.passages(&passages)?);
                let part = self.settings.embedder.sub_batch_size.and_then(|size| usize::try_from(size).ok());
                let same = parts(collator, queries, part) == texts.queries
                    && parts(collator, passages, part) == texts.passages;
                Ok(same && same_scores(teacher.as_ref(), texts.teacher.as_ref()))
            }
        }
    }
}

fn pairs(collator: &Collator, groups: &[Group]) -> Result<Side, TrainError> {
    let mut all = Vec::new();
    for group in groups {
        all.extend(collator.pairs(&group.query, &group.passages)?);
    }
    Ok(collator.side(all))
}

/// One part, or parts of so many rows, each padded to its own longest.
fn parts(collator: &Collator, side: Side, rows: Option<usize>) -> Vec<Side> {
    match rows.filter(|&rows| rows > 0) {
        None => vec![side],
        Some(rows) => side.sequences.chunks(rows).map(|part| collator.side(part.to_vec())).collect(),
    }
}

/// All groups' scores; none where none has any.
fn scores(groups: &[Group]) -> Option<Vec<f64>> {
    let scores: Vec<f64> = groups.iter().flat_map(|group| group.teacher.iter().flatten().copied()).collect();
    (!scores.is_empty()).then_some(scores)
}

fn same_scores(found: Option<&Vec<f64>>, recorded: Option<&Vec<f64>>) -> bool {
    // What was written as decimal comes back to the bit.
    let bits = |scores: Option<&Vec<f64>>| -> Vec<u64> {
        scores.map(|scores| scores.iter().map(|score| score.to_bits()).collect()).unwrap_or_default()
    };
    bits(found) == bits(recorded)
}
