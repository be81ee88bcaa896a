//! A checkpoint to be loaded, as an operator writes it: `[NAME=]DIR[,pooling=cls|mean|last][,max_tokens=N]`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use cluster::{InvalidName, Name};
use model::{Overrides, Pooling};

/// A checkpoint to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// The name it is served under.
    pub name: Name,
    /// Its directory.
    pub dir: PathBuf,
    /// What is said in place of its own files.
    pub overrides: Overrides,
}

/// Why a text is not a [`ModelSpec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// Name the directory.
    #[error("no directory is given in {0:?}")]
    NoDirectory(String),
    /// Name the model, or correct its name.
    #[error("{text:?} gives no usable name: {source}; write NAME=DIR")]
    Name {
        /// As given.
        text: String,
        /// What is wrong with the name.
        source: InvalidName,
    },
    /// Correct the option.
    #[error("the option {0:?} is not pooling=cls|mean|last or max_tokens=N with N above 0")]
    Option(String),
}

impl ModelSpec {
    /// Reads a text. A directory whose own name has a comma or an equals sign cannot be written; use a link to it.
    ///
    /// # Errors
    /// [`InvalidSpec`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidSpec> {
        let mut parts = text.split(',');
        let place = parts.next().unwrap_or_default();
        let (name, dir) = match place.split_once('=') {
            Some((name, dir)) => (Some(name), dir),
            None => (None, place),
        };
        if dir.is_empty() {
            return Err(InvalidSpec::NoDirectory(text.to_owned()));
        }
        // `.` and `..` have no name until they are resolved.
        let resolved = || Path::new(dir).canonicalize().unwrap_or_else(|_| dir.into());
        let own = || resolved().file_name().map(|name| name.to_string_lossy().into_owned());
        let name = Name::parse(name.map(str::to_owned).or_else(own).unwrap_or_default())
            .map_err(|source| InvalidSpec::Name { text: text.to_owned(), source })?;
        let mut overrides = Overrides::default();
        for option in parts {
            set(&mut overrides, option).ok_or_else(|| InvalidSpec::Option(option.to_owned()))?;
        }
        Ok(Self { name, dir: dir.into(), overrides })
    }
}

fn set(overrides: &mut Overrides, option: &str) -> Option<()> {
    match option.split_once('=')? {
        ("pooling", value) => overrides.pooling = Some(value.parse::<Pooling>().ok()?),
        ("max_tokens", value) => overrides.max_tokens = Some(value.parse::<NonZeroUsize>().ok()?.get()),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, name: &str, dir: &str, overrides: &Overrides) {
        let spec = ModelSpec::parse(text).unwrap();
        assert_eq!((spec.name.as_str(), spec.dir.as_path()), (name, Path::new(dir)));
        assert_eq!(&spec.overrides, overrides);
    }

    #[test]
    fn a_directory_is_enough() {
        check("/models/bge-small", "bge-small", "/models/bge-small", &Overrides::default());
        check("bge/", "bge", "bge/", &Overrides::default());
    }

    #[test]
    fn name_and_options_may_be_given() {
        check("a=/models/b", "a", "/models/b", &Overrides::default());
        let both = Overrides { pooling: Some(Pooling::Mean), max_tokens: Some(128) };
        check("a=b,pooling=mean,max_tokens=128", "a", "b", &both);
        let one = Overrides { pooling: None, max_tokens: Some(1) };
        check("b,max_tokens=1", "b", "b", &one);
    }

    #[test]
    fn anything_else_says_what_is_wrong() {
        #[track_caller]
        fn check(text: &str, part: &str) {
            let error = ModelSpec::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        check("", "no directory");
        check("name=", "no directory");
        check("/", "gives no usable name");
        check("my model=/m", "must not contain ' '");
        check("=/m", "must not be empty");
        check("/m,pooling=max", "\"pooling=max\"");
        check("/m,max_tokens=0", "\"max_tokens=0\"");
        check("/m,fast", "\"fast\"");
        check("/m,", "\"\"");
    }
}
