//! etcd over TLS, each end showing a certificate: who is not trusted is refused, and the refusal says why.

use std::fs;
use std::path::Path;

use cluster::{Error, Tls, claim_alias};
use server::EtcdTls;
use tempfile::TempDir;
use tls::testing::{Authority, Files, Validity};
use tls::{ClientFiles, Distrust};

use super::*;

/// An etcd that wants certificates, the authority that it trusts, and files of certificates.
struct Secured {
    server: EtcdServer,
    authority: Authority,
    directory: TempDir,
}

impl Secured {
    /// etcd shows a certificate for `names`.
    async fn start(names: &[&str], validity: Validity) -> Self {
        let (authority, directory) = (Authority::named("ours"), TempDir::new().unwrap());
        let files = Files(directory.path());
        let (certificate, key) = files.identity("etcd", &authority.issue(names, validity));
        let client_authorities = files.authorities("clients", &[&authority]);
        let server = EtcdServer::start_secured(EtcdTls { certificate, key, client_authorities }).await;
        Self { server, authority, directory }
    }

    fn files(&self) -> Files<'_> {
        Files(self.directory.path())
    }

    /// What a client needs.
    fn client_files(&self) -> ClientFiles {
        let identity = self.authority.issue(&["client"], Validity::Lasting);
        self.files().client("client", &self.authority, Some(&identity))
    }

    fn connect(&self, files: ClientFiles, server_name: Option<&str>) -> Etcd {
        connect_over_tls(&self.server.endpoint(), files, server_name)
    }

    /// Why a call with `files` is not made; the reason tells nothing of any key.
    async fn distrust(&self, files: ClientFiles) -> Distrust {
        let key = files.identity.as_ref().map(|(_, key)| lines(key)).unwrap_or_default();
        let error = claim_alias(&self.connect(files, None), "m", "d1").await.unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(key.iter().all(|secret| !told.contains(secret.as_str())), "{told}");
        let Error::Untrusted { source, .. } = error else { panic!("{told}") };
        source
    }
}

fn connect_over_tls(endpoint: &str, files: ClientFiles, server_name: Option<&str>) -> Etcd {
    let tls = Some(Tls { files, server_name: server_name.map(ToOwned::to_owned) });
    let endpoints = vec![format!("https://{endpoint}")];
    Etcd::connect(Settings { endpoints, cluster: name("test"), tls }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_lives_over_tls() {
    let mut secured = Secured::start(&["127.0.0.1"], Validity::Lasting).await;
    let etcd = secured.connect(secured.client_files(), None);
    let membership = join_for(&etcd, registration("w1", &["d1"]), TTL);
    let follower = watch_over(&etcd, |_| true);
    follower.sees(&["w1"]).await;
    assert_eq!(claim_alias(&etcd, "m", "d1").await.unwrap().epoch, 1);
    until(follower.views.clone(), |view| view.aliases.contains_key("m")).await;

    secured.server.stop().await;
    until(membership.registered(), |registered| !registered).await;
    secured.server.restart().await;
    until(membership.registered(), |registered| *registered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_slow_and_speaks_tls_is_still_had() {
    let secured = Secured::start(&["127.0.0.1"], Validity::Lasting).await;
    let proxy = Proxy::start(secured.server.endpoint()).await;
    proxy.set(Fault::DelayAnswers(Duration::from_secs(1)));
    let etcd = connect_over_tls(&proxy.endpoint(), secured.client_files(), None);
    let _member = join(&etcd, registration("w1", &["d1"]));
    watch_over(&etcd, |_| true).sees(&["w1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_with_another_name_is_known_by_the_name_that_is_set() {
    let secured = Secured::start(&["etcd.example"], Validity::Lasting).await;
    assert_eq!(secured.distrust(secured.client_files()).await, Distrust::OtherName);
    let by_name = secured.connect(secured.client_files(), Some("etcd.example"));
    assert_eq!(claim_alias(&by_name, "m", "d1").await.unwrap().epoch, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_not_trusted_is_sent_nothing() {
    let secured = Secured::start(&["127.0.0.1"], Validity::Lasting).await;
    let identity = secured.authority.issue(&["client"], Validity::Lasting);
    let of_another = secured.files().client("of-another", &Authority::named("another"), Some(&identity));
    assert_eq!(secured.distrust(of_another).await, Distrust::UnknownAuthority);

    let expired = Secured::start(&["127.0.0.1"], Validity::Past).await;
    assert_eq!(expired.distrust(expired.client_files()).await, Distrust::Expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_refuses_who_shows_no_certificate_or_a_wrong_one() {
    let secured = Secured::start(&["127.0.0.1"], Validity::Lasting).await;
    let stranger = Authority::named("another").issue(&["client"], Validity::Lasting);
    let expired = secured.authority.issue(&["client"], Validity::Past);
    for (name, shown) in [("nobody", None), ("stranger", Some(&stranger)), ("expired", Some(&expired))] {
        let files = secured.files().client(name, &secured.authority, shown);
        let found = secured.distrust(files).await;
        assert!(matches!(found, Distrust::Declined(_)), "{name}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_plaintext_do_not_meet() {
    let secured = Secured::start(&["127.0.0.1"], Validity::Lasting).await;
    let in_the_clear = claim_alias(&connect(&secured.server), "m", "d1").await;
    assert!(matches!(in_the_clear, Err(Error::Unavailable { .. })), "{in_the_clear:?}");

    let plain = EtcdServer::start().await;
    let over_tls = connect_over_tls(&plain.endpoint(), secured.client_files(), None);
    // etcd says in the clear what it thinks of a greeting in TLS, and hangs up; the reset may be there first.
    let tries = async {
        loop {
            match claim_alias(&over_tls, "m", "d1").await {
                Err(Error::Unavailable { .. }) => {}
                found => break found,
            }
        }
    };
    let found = time::timeout(PATIENCE, tries).await.expect("its answer is read now and then");
    assert!(matches!(found, Err(Error::Untrusted { source: Distrust::Protocol(_), .. })), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_used_while_the_cluster_lives_on() {
    let secured = Secured::start(&["127.0.0.1"], Validity::Lasting).await;
    let etcd = secured.connect(secured.client_files(), None);
    let ttl = MembershipOptions::default().ttl;
    let membership = join_for(&etcd, registration("w1", &["d1"]), ttl);
    let follower = watch_over(&etcd, |_| true);
    follower.sees(&["w1"]).await;
    until(membership.registered(), |registered| *registered).await;
    let stop = CancellationToken::new();
    let (fewest, fell) =
        (note_fewest(follower.views.clone(), &stop), note_falls(membership.registered(), &stop));

    // A certificate that is refused shows that the files were read: nothing else would end what is open.
    let files = secured.files();
    let expired = secured.authority.issue(&["client"], Validity::Past);
    let _ = files.identity("client", &expired);
    until(follower.sight.clone(), |sight| sight.freshness == cluster::Freshness::Stale).await;
    // And one that is not: everybody is back without having been told.
    let renewed = secured.authority.issue(&["client"], Validity::Lasting);
    let _ = files.identity("client", &renewed);
    until(follower.sight.clone(), |sight| sight.freshness == cluster::Freshness::Current).await;
    let late = join_for(&etcd, registration("w2", &["d1"]), ttl);
    follower.sees(&["w1", "w2"]).await;

    // Half a pair is no news: the whole one is used until there is another.
    fs::write(secured.directory.path().join("client.pem"), "half").unwrap();
    time::sleep(ttl).await;
    assert!(*membership.registered().borrow() && *late.registered().borrow());
    assert!(!*fell.borrow(), "the registration was kept throughout");
    assert_eq!(*fewest.borrow(), 1);
    stop.cancel();
}

#[test]
fn refusals_and_settings_tell_nothing_of_a_key() {
    let directory = TempDir::new().unwrap();
    let identity = Authority::named("ours").issue(&["client"], Validity::Lasting);
    let files = Files(directory.path()).client("client", &Authority::named("ours"), Some(&identity));
    let (_, key) = files.identity.clone().unwrap();
    let secrets: Vec<String> = lines(&key);
    assert!(!secrets.is_empty());

    let told = |files: &ClientFiles| {
        let tls = Some(Tls { files: files.clone(), server_name: None });
        let settings = Settings { endpoints: vec!["e:1".into()], cluster: name("test"), tls };
        let shown = format!("{settings:?}");
        match Etcd::connect(settings) {
            Ok(etcd) => format!("{shown} {etcd:?}"),
            Err(error) => format!("{shown} {error:?} {error}"),
        }
    };
    let well = told(&files);
    // A key that is cut in two, and one where a certificate should be.
    fs::write(&key, &fs::read_to_string(&key).unwrap()[..120]).unwrap();
    let cut = told(&files);
    let swapped = told(&ClientFiles { authorities: Some(key), identity: None });
    for text in [&well, &cut, &swapped] {
        assert!(secrets.iter().all(|secret| !text.contains(secret.as_str())), "{text}");
        assert!(text.contains(directory.path().to_str().unwrap()), "{text}");
    }
}

/// The lines of a PEM file that say anything.
fn lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().filter(|line| line.len() > 20 && !line.starts_with("---")).map(ToOwned::to_owned).collect()
}
