//! What files were called that were fetched for a job.

use std::path::{Path, PathBuf};

use super::Job;

impl Job {
    /// What a file was called, where it was fetched.
    #[must_use]
    pub fn said(&self, path: &Path) -> PathBuf {
        self.fetched.get(path).map_or_else(|| path.to_owned(), PathBuf::from)
    }

    /// A sentence in which files that were fetched go by what they were called.
    #[must_use]
    pub fn retold(&self, sentence: &str) -> String {
        // Files before the directories that they are in.
        self.fetched.iter().rev().fold(sentence.to_owned(), |sentence, (path, name)| {
            path.to_str().map_or(sentence.clone(), |path| sentence.replace(path, name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_by_what_they_were_called() {
        let text = r#"{"kind": "embedder", "model": "/j/0/m", "output_dir": "o", "train_data": ["/j/1/a.jsonl"],
            "fetched": {"/j/0/m": "s3://b/m", "/j/0/m/config.json": "s3://b/m/config.json", "/j/1/a.jsonl": "s3://b/a.jsonl"}}"#;
        let job: Job = serde_json::from_str(text).unwrap();
        assert_eq!(job.said(Path::new("/j/1/a.jsonl")), Path::new("s3://b/a.jsonl"));
        assert_eq!(job.said(Path::new("/here/a.jsonl")), Path::new("/here/a.jsonl"));
        assert_eq!(
            job.retold("/j/0/m/config.json: EOF; /j/0/m/x: gone"),
            "s3://b/m/config.json: EOF; s3://b/m/x: gone"
        );
    }
}
