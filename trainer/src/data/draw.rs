//! From an example to a query and its group of passages.

use std::fmt;

use super::jsonl::Example;
use super::python::Random;

/// Texts from this many characters on are cut and shuffled, where that is asked for.
const LONG: usize = 100;

/// What goes in front of texts, and where: a format in which `{}` stands for the instruction, then for the text, or `{0}`
/// and `{1}` for them in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wording {
    /// `None` leaves texts as they are.
    pub instruction: Option<String>,
    /// Such as `{}{}`.
    pub format: String,
}

/// Whose custom is followed where the reference's is weak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Custom {
    /// No negative twice before all have come once; an example without negatives takes part where its group can be
    /// filled otherwise; a prompt that is missing is none.
    #[default]
    Ours,
    /// The reference's, so that a run can be replayed.
    FlagEmbedding,
}

/// How groups are drawn.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// Of queries.
    pub query: Wording,
    /// Of passages.
    pub passage: Wording,
    /// Share of long positives whose three parts are shuffled.
    pub shuffle_ratio: f64,
    /// Whether the teacher's scores are wanted.
    pub taught: Taught,
    /// For whom.
    pub reader: Reader,
    /// Whose custom.
    pub custom: Custom,
}

/// When a group has the teacher's scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taught {
    /// Never.
    No,
    /// Always: an example without them makes no group.
    Yes,
    /// Where the example has them.
    WhereThere,
}

/// Who reads the texts: each kind of model has its own names for examples' prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// An embedder, with batches of all files: `prompt` replaces the instruction.
    Embedder,
    /// An embedder, with batches of one file each.
    EmbedderByFile,
    /// A cross-encoder: `query_prompt` and `passage_prompt` replace the instructions.
    CrossEncoder,
}

/// A query and its group.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// With its instruction.
    pub query: String,
    /// With their instruction, the positive first.
    pub passages: Vec<String>,
    /// The teacher's scores of the passages, where it is wanted and there.
    pub teacher: Option<Vec<f64>>,
}

/// Why an example makes no group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It has no positive.
    NoPositive,
    /// It has no negative and needs some.
    NoNegative,
    /// It has fewer scores than texts.
    Scores,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPositive => "pos is empty",
            Self::NoNegative => "neg is empty",
            Self::Scores => "pos_scores or neg_scores are missing, or fewer than the texts",
        })
    }
}

impl Wording {
    /// `text` behind the instruction, if there is one.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        self.word(None, text)
    }

    /// What is put before a text and behind it; `None` where the format has no place for one.
    #[must_use]
    pub fn around(&self) -> Option<(String, String)> {
        // No instruction holds it.
        const TEXT: &str = "\u{0}";
        self.text(TEXT).split_once(TEXT).map(|(before, behind)| (before.to_owned(), behind.to_owned()))
    }

    /// The text behind `own`, or behind the instruction where there is none.
    fn word(&self, own: Option<&str>, text: &str) -> String {
        match own.or(self.instruction.as_deref()) {
            Some(instruction) => fill(&self.format, instruction, text),
            None => text.to_owned(),
        }
    }

    /// As the reference words it: a prompt is passed over where there is no instruction, unless batches are of one file
    /// each, where what is missing becomes the word `None`.
    fn word_by_reference(&self, own: Option<&str>, text: &str, reader: Reader) -> String {
        match (self.instruction.is_some(), reader) {
            (false, Reader::Embedder | Reader::CrossEncoder) => text.to_owned(),
            (true, _) => self.word(own, text),
            (false, Reader::EmbedderByFile) => self.word(own.or(Some("None")), text),
        }
    }
}

/// Python's `format.format(instruction, text)`: `{}` stands for the next of them, `{0}` and `{1}` for one by its number,
/// and a brace that is doubled for itself.
fn fill(format: &str, instruction: &str, text: &str) -> String {
    let words = [instruction, text];
    let (mut filled, mut rest, mut next) = (String::new(), format, 0);
    while let Some(at) = rest.find(['{', '}']) {
        filled += &rest[..at];
        rest = &rest[at..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            filled += &rest[..1];
            rest = &rest[2..];
        } else if let Some((word, behind)) = field(rest, next) {
            filled += words.get(word).copied().unwrap_or_default();
            rest = behind;
            next += 1;
        } else {
            filled += &rest[..1];
            rest = &rest[1..];
        }
    }
    filled + rest
}

/// Which word a field at the start of `format` stands for, and what is behind it; `{}` stands for word `next`.
fn field(format: &str, next: usize) -> Option<(usize, &str)> {
    let (inside, behind) = format.strip_prefix('{')?.split_once('}')?;
    let word = if inside.is_empty() { next } else { inside.parse().ok()? };
    Some((word, behind))
}

impl Drawing {
    /// Draws a positive and `size - 1` negatives, as `random` has it.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn draw(&self, example: &Example, size: usize, random: &mut Random) -> Result<Group, Unfit> {
        if example.pos.is_empty() {
            return Err(Unfit::NoPositive);
        }
        let positive = random.below(example.pos.len());
        let mut passages = vec![self.shuffled(&example.pos[positive], random)];
        let negatives = self.negatives(example.neg.len(), size.saturating_sub(1), random)?;
        passages.extend(negatives.iter().map(|&negative| example.neg[negative].clone()));
        let teacher = match (self.taught, scores(example, positive, &negatives)) {
            (Taught::No, _) | (Taught::WhereThere, None) => None,
            (Taught::Yes, None) => return Err(Unfit::Scores),
            (Taught::Yes | Taught::WhereThere, Some(scores)) => Some(scores),
        };
        let passages = passages.iter().map(|text| self.passage(example, text)).collect();
        Ok(Group { query: self.query(example), passages, teacher })
    }

    /// The query with its instruction.
    #[must_use]
    pub fn query(&self, example: &Example) -> String {
        let own = match self.reader {
            Reader::Embedder | Reader::EmbedderByFile => example.prompt.as_deref(),
            Reader::CrossEncoder => example.query_prompt.as_deref(),
        };
        self.worded(&self.query, own, &example.query)
    }

    fn passage(&self, example: &Example, text: &str) -> String {
        let symmetric = ["symmetric_sts", "symmetric_clustering"];
        let is_symmetric = example.kind.as_deref().is_some_and(|kind| symmetric.contains(&kind));
        match self.reader {
            Reader::EmbedderByFile if is_symmetric => {
                self.worded(&self.query, example.prompt.as_deref(), text)
            }
            Reader::Embedder | Reader::EmbedderByFile => self.passage.word(None, text),
            Reader::CrossEncoder => self.worded(&self.passage, example.passage_prompt.as_deref(), text),
        }
    }

    fn worded(&self, wording: &Wording, own: Option<&str>, text: &str) -> String {
        match self.custom {
            Custom::Ours => wording.word(own, text),
            Custom::FlagEmbedding => wording.word_by_reference(own, text, self.reader),
        }
    }

    /// Which negatives: the reference draws from as many copies of all as are needed.
    fn negatives(&self, there: usize, wanted: usize, random: &mut Random) -> Result<Vec<usize>, Unfit> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        if there == 0 {
            return Err(Unfit::NoNegative);
        }
        if there >= wanted {
            return Ok(random.sample(there, wanted));
        }
        match self.custom {
            Custom::FlagEmbedding => {
                let copies = there * wanted.div_ceil(there);
                Ok(random.sample(copies, wanted).into_iter().map(|drawn| drawn % there).collect())
            }
            Custom::Ours => {
                let mut drawn = Vec::with_capacity(wanted);
                while drawn.len() < wanted {
                    drawn.extend(random.sample(there, there.min(wanted - drawn.len())));
                }
                Ok(drawn)
            }
        }
    }

    fn shuffled(&self, text: &str, random: &mut Random) -> String {
        if self.shuffle_ratio <= 0.0 {
            return text.to_owned();
        }
        let characters: Vec<char> = text.chars().collect();
        if characters.len() <= LONG || random.random() >= self.shuffle_ratio {
            return text.to_owned();
        }
        let mut parts: Vec<String> =
            characters.chunks(characters.len() / 3 + 1).map(|part| part.iter().collect()).collect();
        random.shuffle(&mut parts);
        parts.join(" ")
    }
}

fn scores(example: &Example, positive: usize, negatives: &[usize]) -> Option<Vec<f64>> {
    let (of_positives, of_negatives) = (example.pos_scores.as_ref()?, example.neg_scores.as_ref()?);
    let first = std::iter::once(of_positives.get(positive));
    first
        .chain(negatives.iter().map(|&negative| of_negatives.get(negative)))
        .map(Option::<&f64>::copied)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawing(custom: Custom) -> Drawing {
        let plain = Wording { instruction: None, format: "{}{}".to_owned() };
        Drawing {
            query: plain.clone(),
            passage: plain,
            shuffle_ratio: 0.0,
            taught: Taught::No,
            reader: Reader::Embedder,
            custom,
        }
    }

    fn example(negatives: usize) -> Example {
        Example {
            query: "q".to_owned(),
            pos: vec!["a".to_owned(), "b".to_owned()],
            neg: (0..negatives).map(|n| n.to_string()).collect(),
            ..Example::default()
        }
    }

    #[test]
    fn few_negatives_all_come_before_one_comes_twice() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let group = drawing(Custom::Ours).draw(&example(3), 6, &mut random).unwrap();
            let mut first: Vec<&String> = group.passages[1..4].iter().collect();
            first.sort();
            assert_eq!(first, ["0", "1", "2"]);
            assert_eq!(group.passages.len(), 6);
            let group = drawing(Custom::FlagEmbedding).draw(&example(3), 6, &mut random).unwrap();
            let most = (0..3).map(|n| group.passages.iter().filter(|text| **text == n.to_string()).count());
            assert!(most.max() <= Some(2), "{group:?}");
        }
    }

    #[test]
    fn what_makes_no_group_is_said() {
        let mut random = Random::new(1);
        let no_positive = Example { pos: vec![], ..example(2) };
        let draw =
            |example: &Example, size, random: &mut Random| drawing(Custom::Ours).draw(example, size, random);
        assert_eq!(draw(&no_positive, 2, &mut random), Err(Unfit::NoPositive));
        assert_eq!(draw(&example(0), 2, &mut random), Err(Unfit::NoNegative));
        assert_eq!(draw(&example(0), 1, &mut random).unwrap().passages.len(), 1);
        let taught = Drawing { taught: Taught::Yes, ..drawing(Custom::Ours) };
        assert_eq!(taught.draw(&example(2), 2, &mut random), Err(Unfit::Scores));
        let scored = Example { pos_scores: Some(vec![1.0, 2.0]), neg_scores: Some(vec![0.5]), ..example(1) };
        let group = taught.draw(&scored, 2, &mut random).unwrap();
        assert_eq!(group.teacher.unwrap().len(), 2);
    }

    #[test]
    fn instructions_go_where_the_format_says() {
        let instructed = |custom, instruction: Option<&str>| {
            let mut drawing = drawing(custom);
            drawing.query = Wording {
                instruction: instruction.map(str::to_owned),
                format: "Instruct: {}\nQuery: {}".to_owned(),
            };
            drawing
        };
        let prompted = Example { prompt: Some("own".to_owned()), ..example(1) };
        let found = |custom, instruction, example: &Example| instructed(custom, instruction).query(example);
        assert_eq!(found(Custom::Ours, Some("find"), &example(1)), "Instruct: find\nQuery: q");
        assert_eq!(found(Custom::Ours, Some("find"), &prompted), "Instruct: own\nQuery: q");
        assert_eq!(found(Custom::Ours, None, &prompted), "Instruct: own\nQuery: q");
        assert_eq!(found(Custom::FlagEmbedding, None, &prompted), "q");
        assert_eq!(found(Custom::Ours, None, &example(1)), "q");
        let by_file = |custom, example: &Example| {
            Drawing { reader: Reader::EmbedderByFile, ..instructed(custom, None) }.query(example)
        };
        assert_eq!(by_file(Custom::FlagEmbedding, &example(1)), "Instruct: None\nQuery: q");
        assert_eq!(by_file(Custom::Ours, &example(1)), "q");
    }

    #[test]
    fn formats_are_those_of_python() {
        for (format, expected) in [
            ("{}{}", "doask"),
            ("<{}> {}!", "<do> ask!"),
            ("{1} / {0}", "ask / do"),
            ("{{{0}}}: {1}", "{do}: ask"),
            ("{}", "do"),
            ("no field", "no field"),
            ("{}\n{} {}", "do\nask "),
        ] {
            assert_eq!(fill(format, "do", "ask"), expected, "{format}");
        }
        assert_eq!(fill("{}: {}", "{}", "a } b"), "{}: a } b");
    }

    #[test]
    fn long_positives_are_shuffled_in_three_parts() {
        let text: String = ('a'..='z').cycle().take(101).collect();
        let long = Example { pos: vec![text.clone()], ..example(1) };
        let drawing = Drawing { shuffle_ratio: 1.0, ..drawing(Custom::Ours) };
        let group = drawing.draw(&long, 2, &mut Random::new(42)).unwrap();
        let mut parts: Vec<&str> = group.passages[0].split(' ').collect();
        parts.sort_by_key(|part| text.find(part));
        assert_eq!(parts.concat(), text);
        assert_eq!(parts.len(), 3);
    }

    #[test]
    fn passages_of_symmetric_tasks_are_worded_as_queries() {
        let wording = |instruction: &str| Wording {
            instruction: Some(instruction.to_owned()),
            format: "{}: {}".to_owned(),
        };
        let drawing = Drawing {
            query: wording("ask"),
            passage: wording("say"),
            reader: Reader::EmbedderByFile,
            ..drawing(Custom::Ours)
        };
        let worded = |kind: &str, reader, prompt: Option<&str>| {
            let (kind, prompt) = (Some(kind.to_owned()), prompt.map(str::to_owned));
            let example = Example { pos: vec!["p".to_owned()], kind, prompt, ..example(1) };
            let drawing = Drawing { reader, ..drawing.clone() };
            let group = drawing.draw(&example, 2, &mut Random::new(1)).unwrap();
            (group.query, group.passages.join(" "))
        };
        let both = |query: &str, passages: &str| (query.to_owned(), passages.to_owned());
        let by_file = Reader::EmbedderByFile;
        for kind in ["symmetric_sts", "symmetric_clustering"] {
            assert_eq!(worded(kind, by_file, None), both("ask: q", "ask: p ask: 0"), "{kind}");
            assert_eq!(worded(kind, by_file, Some("own")), both("own: q", "own: p own: 0"), "{kind}");
            assert_eq!(worded(kind, Reader::Embedder, None), both("ask: q", "say: p say: 0"), "{kind}");
        }
        assert_eq!(worded("normal", by_file, Some("own")), both("own: q", "say: p say: 0"));
    }
}
