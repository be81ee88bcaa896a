//! Where jobs may read: below the data roots, and nowhere else.

use std::path::{Path, PathBuf};

/// Directories that jobs may read from. What a job names is relative to the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots(Vec<PathBuf>);

impl Roots {
    /// `roots`, of which there is at least one.
    ///
    /// # Errors
    /// A sentence about the first that is no directory.
    pub fn open(roots: &[PathBuf]) -> Result<Self, String> {
        let open = |root: &PathBuf| match root.canonicalize() {
            Ok(path) if path.is_dir() => Ok(path),
            Ok(_) => Err(format!("{} is no directory", root.display())),
            Err(error) => Err(format!("{}: {error}", root.display())),
        };
        Ok(Self(roots.iter().map(open).collect::<Result<_, _>>()?))
    }

    /// The file or directory that a job means by `named`: a path, or a `file://` URL.
    ///
    /// # Errors
    /// A sentence: where it is not there, leads out of the roots, or is of a scheme that is not read.
    pub fn resolve(&self, named: &Path) -> Result<PathBuf, String> {
        let shown = named.display();
        let text = named.to_str().ok_or_else(|| format!("{shown} is not UTF-8"))?;
        let path = match text.split_once("://") {
            None => text,
            Some(("file", path)) if path.starts_with('/') => path,
            Some(("file", _)) => return Err(format!("{shown} names a host: file:///directory is read")),
            Some((scheme, _)) => {
                return Err(format!("{shown} is of the scheme {scheme}: paths and file:// are read"));
            }
        };
        let first = self.0.first().ok_or("there is no data root")?;
        let found = first.join(path).canonicalize();
        // Whether something is there is not told of what is outside.
        let outside = || format!("{shown} is not below a data root of the trainer, or not there");
        let found = found.map_err(|_| outside())?;
        if self.0.iter().any(|root| found.starts_with(root)) { Ok(found) } else { Err(outside()) }
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
        let resolve = |named: &str| roots.resolve(Path::new(named));
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
}
