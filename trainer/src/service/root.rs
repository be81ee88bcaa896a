//! Where jobs may read: below the data roots and in the buckets that the operator names, and nowhere else.

use std::path::{Path, PathBuf};

use store::{Copies, Place, Source};

/// Directories and buckets that jobs may read from. A path that a job names is relative to the first directory.
#[derive(Clone, Debug)]
pub struct Roots {
    directories: Vec<PathBuf>,
    sources: Vec<Source>,
    /// Where objects are fetched to; needed where there are sources.
    pub(super) copies: Option<Copies>,
}

/// What a job means.
#[derive(Clone, Debug)]
pub enum Found {
    /// A file or directory.
    Here(PathBuf),
    /// An object, or a prefix.
    Away(Place),
}

impl Roots {
    /// `directories`, of which there is at least one.
    ///
    /// # Errors
    /// A sentence about the first that is no directory.
    pub fn open(directories: &[PathBuf]) -> Result<Self, String> {
        let open = |root: &PathBuf| match root.canonicalize() {
            Ok(path) if path.is_dir() => Ok(path),
            Ok(_) => Err(format!("{} is no directory", root.display())),
            Err(error) => Err(format!("{}: {error}", root.display())),
        };
        let directories = directories.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { directories, sources: Vec::new(), copies: None })
    }

    /// The same, and `sources`, of which copies are kept.
    #[must_use]
    pub fn with_sources(self, sources: Vec<Source>, copies: Copies) -> Self {
        Self { sources, copies: Some(copies), ..self }
    }

    /// What a job means by `named`: a path, a `file://` URL, or that of an object or a prefix. No store is spoken to.
    ///
    /// # Errors
    /// A sentence: where a file is not there, it leads out of the roots, or is of a scheme that is not read.
    pub fn find(&self, named: &Path) -> Result<Found, String> {
        let shown = named.display();
        let text = named.to_str().ok_or_else(|| format!("{shown} is not UTF-8"))?;
        let Some((scheme, rest)) = text.split_once("://") else { return self.resolve(text, text) };
        if rest.split('/').next().is_some_and(|host| host.contains('@')) {
            // Not told again: it ends up in logs.
            return Err("it names a user or a password: credentials are the trainer's own".to_owned());
        }
        match scheme {
            "file" if rest.starts_with('/') => self.resolve(text, rest),
            "file" => Err(format!("{shown} names a host: file:///directory is read")),
            "s3" | "gs" if !self.sources.is_empty() => self.place(text, rest),
            _ if self.sources.is_empty() => {
                Err(format!("{shown} is of the scheme {scheme}: paths and file:// are read"))
            }
            _ => Err(format!("{shown} is of the scheme {scheme}: paths, file://, s3:// and gs:// are read")),
        }
    }

    /// A source with the object at `url`.
    pub(super) fn source_of(&self, url: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.find(url).is_some())
    }

    fn resolve(&self, shown: &str, path: &str) -> Result<Found, String> {
        let first = self.directories.first().ok_or("there is no data root")?;
        let found = first.join(path).canonicalize();
        // Whether something is there is not told of what is outside.
        let outside = || format!("{shown} is not below a data root of the trainer, or not there");
        let found = found.map_err(|_| outside())?;
        let inside = self.directories.iter().any(|root| found.starts_with(root));
        if inside { Ok(Found::Here(found)) } else { Err(outside()) }
    }

    fn place(&self, shown: &str, rest: &str) -> Result<Found, String> {
        if rest.contains(|c: char| matches!(c, '?' | '#' | '\\') || c.is_control()) {
            // A query may be a signature.
            return Err("it has a query, or characters that are written with %, such as %3F".to_owned());
        }
        let climbs = |part: &str| matches!(part.to_lowercase().replace("%2e", ".").as_str(), "." | "..");
        if rest.split(['/', '\\']).any(climbs) {
            return Err(format!("{shown} climbs: no part of it is . or .."));
        }
        let found = self.sources.iter().find_map(|source| source.find(shown));
        let outside = || format!("{shown} is not below a data URI of the trainer");
        found.map(Found::Away).ok_or_else(outside)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_roots_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (data, models, secret) =
            (dir.path().join("data"), dir.path().join("models"), dir.path().join("s"));
        for made in [&data, &models] {
            fs::create_dir(made).unwrap();
        }
        for file in [data.join("a.jsonl"), models.join("m"), secret.clone()] {
            fs::write(file, "x").unwrap();
        }
        symlink(&secret, data.join("link.jsonl")).unwrap();
        let roots = Roots::open(&[data.clone(), models.clone()]).unwrap();
        let resolve = |named: &str| match roots.find(Path::new(named))? {
            Found::Here(path) => Ok(path),
            Found::Away(place) => Err(place.url()),
        };
        let inside = data.canonicalize().unwrap().join("a.jsonl");
        assert_eq!(resolve("a.jsonl"), Ok(inside.clone()));
        assert_eq!(resolve(&format!("file://{}", inside.display())), Ok(inside));
        assert!(resolve(models.join("m").to_str().unwrap()).is_ok());
        for outside in
            ["../s", "link.jsonl", "/etc/passwd", "nothing.jsonl", "file:///etc/passwd", "a/../../s"]
        {
            assert!(resolve(outside).unwrap_err().contains("not below a data root"), "{outside}");
        }
        for scheme in ["http://169.254.169.254/latest", "s3://bucket/key", "file://host/a.jsonl"] {
            assert!(resolve(scheme).is_err(), "{scheme}");
        }
        assert!(Roots::open(&[secret]).unwrap_err().contains("no directory"));
    }

    #[test]
    fn objects_are_read_in_the_buckets_that_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let settings = [("AWS_REGION".into(), "nowhere".into())].into_iter().collect();
        let source = Source::open("s3://bucket/data", &settings).unwrap();
        let copies = Copies::open(dir.path(), 1).unwrap();
        let roots = Roots::open(&[dir.path().to_owned()]).unwrap().with_sources(vec![source], copies);
        let check = |named: &str, expected: Result<&str, &str>| match (roots.find(Path::new(named)), expected)
        {
            (Ok(Found::Away(place)), Ok(url)) => assert_eq!(place.url(), url),
            (Err(reason), Err(part)) => {
                assert!(reason.contains(part) && !reason.contains("secret"), "{named}: {reason}");
            }
            (found, _) => panic!("{named}: {found:?}"),
        };
        check("s3://bucket/data/a.jsonl", Ok("s3://bucket/data/a.jsonl"));
        check("s3://bucket/data/kinds/", Ok("s3://bucket/data/kinds"));
        for outside in ["s3://bucket/a.jsonl", "s3://other/data/a.jsonl", "gs://bucket/data/a.jsonl", "s3://"]
        {
            check(outside, Err("not below a data URI"));
        }
        for climbs in ["s3://bucket/data/../a.jsonl", "s3://bucket/data/%2E%2e/a", "s3://bucket/data/./a"] {
            check(climbs, Err("climbs"));
        }
        check("s3://key:secret@bucket/data/a.jsonl", Err("a user or a password"));
        check("http://me:secret@169.254.169.254/latest", Err("a user or a password"));
        check("s3://bucket/data/a.jsonl?versionId=secret", Err("it has a query"));
        check("http://169.254.169.254/latest", Err("of the scheme http: paths, file://, s3:// and gs://"));
        check("s3+http://bucket/data/a", Err("of the scheme s3+http"));
    }
}
