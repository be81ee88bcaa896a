use std::io::Write as _;

use tempfile::NamedTempFile;

use super::*;

fn read(flags: &[&str]) -> Result<Config, InvalidConfig> {
    Config::read(["beige-worker"].iter().chain(flags).map(OsString::from))
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn a_model_is_enough() {
    let config = read(&["--model", "/m/bge"]).unwrap();
    assert_eq!(config.models[0].name.as_str(), "bge");
    assert_eq!(config.etcd, None);
    assert!(config.id.as_str().starts_with("worker-"));
    assert_eq!(
        (config.listen.to_string(), config.admin.to_string()),
        ("127.0.0.1:0".to_owned(), "127.0.0.1:9090".to_owned())
    );
    assert_eq!((config.settle, config.grace), (Duration::from_millis(500), Duration::from_secs(30)));
    assert_eq!(config.batch_tokens, BatchTokens::Auto);
    assert_eq!(config.stdin, Stdin::Ignored);
}

#[test]
fn flags_say_everything() {
    let config = read(&[
        "--model",
        "/m/a,pooling=cls",
        "--model",
        "x=/m/a",
        "--etcd",
        "a:1,b:2",
        "--cluster",
        "blue",
        "--id",
        "w1",
        "--device",
        "cpu",
        "--dtype",
        "f32",
        "--threads",
        "3",
        "--batch-tokens",
        "4096",
        "--grace",
        "2m",
        "--settle",
        "0",
        "--exit-on-stdin-eof",
        "--log-format",
        "json",
        "--advertise",
        "host:1",
        "--listen",
        "0.0.0.0:0",
    ])
    .unwrap();
    assert_eq!(config.models.len(), 2);
    let etcd = config.etcd.unwrap();
    assert_eq!((etcd.endpoints, etcd.cluster.as_str()), (vec!["a:1".to_owned(), "b:2".to_owned()], "blue"));
    assert_eq!((config.device, config.precision, config.threads.get()), (Device::Cpu, Precision::F32, 3));
    assert_eq!(config.batch_tokens, BatchTokens::Fixed(NonZeroUsize::new(4096).unwrap()));
    assert_eq!((config.settle, config.grace), (Duration::ZERO, Duration::from_secs(120)));
    assert_eq!(config.stdin, Stdin::Watched);
}

#[test]
fn flags_go_over_the_file() {
    let file = file(
        r#"
        id = "from-file"
        model = ["/m/bge", "second=/m/bge"]
        batch-tokens = 512
        threads = 7
        grace = "5m"
        exit-on-stdin-eof = true
        "#,
    );
    let config =
        read(&["--config", file.path().to_str().unwrap(), "--threads", "2", "--batch-tokens", "auto"])
            .unwrap();
    assert_eq!((config.id.as_str(), config.models.len(), config.threads.get()), ("from-file", 2, 2));
    assert_eq!((config.batch_tokens, config.grace), (BatchTokens::Auto, Duration::from_secs(300)));
    assert_eq!(config.stdin, Stdin::Watched);
}

#[test]
fn a_file_is_held_to_the_same_names() {
    #[track_caller]
    fn check(text: &str, part: &str) {
        let file = file(text);
        let error = read(&["--config", file.path().to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.starts_with("config: ") && error.contains(part), "{error}");
    }
    check("batch_tokens = 9", "batch_tokens");
    check("batch-tokens = 0", "batch-tokens");
    check("batch-tokens = \"some\"", "auto or a number above 0");
    check("threads = ", "threads");
    let error = read(&["--config", "/nonexistent"]).unwrap_err().to_string();
    assert!(error.starts_with("config: /nonexistent: "), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    #[track_caller]
    fn check(flags: &[&str], part: &str) {
        let error = read(&[&["--model", "/m/a"], flags].concat()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(read(&[]).unwrap_err().to_string(), "model: at least one is needed, or a store");
    let lonely = read(&["--store", "file:///s"]).unwrap_err().to_string();
    assert_eq!(lonely, "store: it needs etcd, which knows what to take from it");
    check(&["--serve", "b"], "serve: it leaves out a, which is brought along");
    check(&["--serve", "a,b/c"], "serve: the name");
    check(&["--cache-bytes", "0"], "--cache-bytes");
    check(&["--memory-limit", "much"], "--memory-limit");
    check(&["--model", "/n/a"], "model: two are called a");
    check(&["--model", "b,fast"], "model: the option \"fast\"");
    check(&["--id", "a/b"], "id: the name");
    check(&["--cluster", "a b"], "cluster: ");
    check(&["--etcd-key", "a.key"], "etcd-cert: a certificate and its private key go together");
    check(&["--device", "gpu"], "device: ");
    check(&["--dtype", "f64"], "dtype: ");
    check(&["--log-format", "xml"], "log-format: ");
    check(&["--listen", "0.0.0.0:1"], "advertise: it is needed");
    check(&["--advertise", "host"], "advertise: \"host\" is not host:port");
    check(&["--advertise", "http://host:1"], "advertise: ");
    check(&["--listen", "127.0.0.1:7", "--admin", "127.0.0.1:7"], "admin: it is the same");
    check(&["--max-age-ms", "2", "--max-wait-ms", "1"], "max-age-ms: ");
    check(&["--batch-tokens", "2", "--max-queued-tokens", "1"], "batch-tokens: ");
    check(&["--batch-tokens", "0"], "--batch-tokens");
    check(&["--threads", "0"], "--threads");
    check(&["--tls-cert", "a.pem"], "tls-cert: tls-cert and tls-key go together");
    check(&["--tls-client-ca", "a.pem"], "tls-client-ca: ");
    check(&["--no-such-flag"], "--no-such-flag");
}

#[test]
fn with_a_store_no_model_is_needed() {
    let config = read(&["--store", "file:///s", "--etcd", "a:1", "--serve", "m,n"]).unwrap();
    let store = config.store.unwrap();
    assert_eq!((store.url.as_str(), store.cache_bytes), ("file:///s", CACHE_BYTES));
    assert!(store.cache.ends_with("beige/checkpoints"), "{:?}", store.cache);
    assert_eq!(config.serves, Some(BTreeSet::from(["m".to_owned(), "n".to_owned()])));
    assert!(config.models.is_empty() && config.memory_limit.is_none());

    let given = ["--cache", "/c", "--cache-bytes", "7", "--memory-limit", "9"];
    let config = read(&[&["--store", "s3://b/p", "--etcd", "a:1"], &given[..]].concat()).unwrap();
    let store = config.store.unwrap();
    assert_eq!((store.cache, store.cache_bytes.get()), (PathBuf::from("/c"), 7));
    assert_eq!(config.memory_limit.map(NonZeroU64::get), Some(9));
}

#[test]
fn the_cache_is_in_the_users_cache_directory() {
    let cache = |environment: &[(&str, &str)]| {
        let pair = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
        let environment = environment.iter().map(pair).collect();
        Facts { cores: NonZeroUsize::MIN, environment }.cache()
    };
    assert_eq!(cache(&[("HOME", "/h")]), Some("/h/.cache/beige/checkpoints".into()));
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/beige/checkpoints".into()));
    assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "")]), Some("/h/.cache/beige/checkpoints".into()));
    assert_eq!(cache(&[]), None);
}

#[test]
fn times_have_units() {
    #[track_caller]
    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(duration("grace", text).ok(), expected.map(Duration::from_millis), "{text}");
    }
    check("500ms", Some(500));
    check("60s", Some(60_000));
    check("60", Some(60_000));
    check("2m", Some(120_000));
    check("1h", Some(3_600_000));
    for wrong in ["", "s", "-1s", "+1s", "1.5s", "1 s", "1d", "99999999999s"] {
        check(wrong, None);
    }
}
