use std::io::Write as _;

use super::*;

fn read(flags: &[&str]) -> Result<Config, InvalidConfig> {
    Config::read(["beige-gateway"].iter().chain(flags).map(OsString::from))
}

#[track_caller]
fn refused(flags: &[&str], expected: &str) {
    let error = read(&[&["--etcd", "http://e:2379"], flags].concat()).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn one_flag_is_enough() {
    let config = read(&["--etcd", "http://a:2379,http://b:2379", "--etcd", "http://c:2379"]).unwrap();
    assert_eq!(config.etcd.endpoints, ["http://a:2379", "http://b:2379", "http://c:2379"]);
    assert_eq!(config.etcd.cluster.as_str(), "default");
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.serving, Serving::default());
    assert_eq!(config.stdin, Stdin::Ignored);
    assert_eq!(config.guard, Files::default());
}

#[test]
fn a_store_is_a_url_and_a_gateway_has_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/checkpoints", dir.path().display());
    let flags = ["--etcd", "http://e:2379", "--store", &url, "--id", "gw-1", "--advertise", "gw-1:8080"];
    let more = ["--retire-grace", "5s", "--collect-grace", "10m", "--max-checkpoint-bytes", "1000"];
    let config = read(&[&flags[..], &more].concat()).unwrap();
    assert_eq!(config.store.unwrap().url(), url);
    assert_eq!((config.id.as_str(), config.advertise.as_deref()), ("gw-1", Some("gw-1:8080")));
    assert_eq!(config.swaps, SwapSettings { grace: Duration::from_secs(5) });
    let collection = Collection { max_checkpoint_bytes: 1000, grace: Duration::from_secs(600) };
    assert_eq!(config.serving.collection, collection);

    let drawn = || read(&["--etcd", "http://e:2379"]).unwrap();
    assert_ne!(drawn().id, drawn().id);
    assert!(drawn().store.is_none() && drawn().swaps == SwapSettings::default());
    refused(&["--store", "/srv/beige"], "store");
    refused(&["--store", "ftp://host"], "ftp");
    refused(&["--id", "a/b"], "id");
    refused(&["--max-checkpoint-bytes", "0"], "max-checkpoint-bytes");
}

#[test]
fn flags_go_over_the_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let text = r#"
        etcd = ["http://e:2379"]
        cluster = "blue"
        max-inputs = 7
        grace = "5m"
        exit-on-stdin-eof = true
    "#;
    file.write_all(text.as_bytes()).unwrap();
    let config = read(&["--config", file.path().to_str().unwrap(), "--cluster", "green"]).unwrap();
    assert_eq!(config.etcd.cluster.as_str(), "green");
    assert_eq!(config.serving.limits.inputs, 7);
    assert_eq!(config.serving.grace, Duration::from_secs(300));
    assert_eq!(config.stdin, Stdin::Watched);
}

#[test]
fn a_file_is_held_to_the_same_names() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"max_inputs = 7").unwrap();
    let config = ["--config", file.path().to_str().unwrap()];
    assert!(matches!(read(&config), Err(InvalidConfig::Malformed { .. })));
    assert!(matches!(read(&["--config", "/nonexistent"]), Err(InvalidConfig::Unread { .. })));
}

#[test]
fn what_is_wrong_is_named() {
    assert!(matches!(read(&[]), Err(InvalidConfig::Missing("etcd"))));
    refused(&["--cluster", "a/b"], "cluster");
    refused(&["--log-format", "xml"], "log-format");
    refused(&["--max-inputs", "0"], "max-inputs");
    refused(&["--max-queued-tokens", "0"], "max-queued-tokens");
    refused(&["--max-text-bytes", "2", "--max-message-bytes", "1"], "max-text-bytes");
    refused(&["--listen", "127.0.0.1:7", "--admin", "127.0.0.1:7"], "same address");
    refused(&["--default-deadline", "0s"], "default-deadline");
    refused(&["--etcd-ca", "ca.pem", "--etcd-key", "a.key"], "etcd-cert and etcd-key");
    refused(&["--tls-cert", "a.pem"], "tls-cert and tls-key");
    refused(&["--tls-client-ca", "a.pem"], "tls-client-ca");
    refused(&["--worker-cert", "a.pem", "--worker-key", "a.key"], "worker-ca");
    refused(&["--listen", "nowhere"], "--listen");
    refused(&["--no-such-flag"], "--no-such-flag");
}

#[test]
fn times_have_units() {
    #[track_caller]
    fn check(text: &str, expected: Option<u64>) {
        let parsed = duration("grace", Some(text)).ok().flatten();
        assert_eq!(parsed, expected.map(Duration::from_millis), "{text}");
    }
    check("500ms", Some(500));
    check("60s", Some(60_000));
    check("60", Some(60_000));
    check("2m", Some(120_000));
    check("1h", Some(3_600_000));
    for wrong in ["", "s", "-1s", "1.5s", "1 s", "1d", "99999999999s"] {
        check(wrong, None);
    }
}
