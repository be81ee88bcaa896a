//! Clients that no one here wrote: Python's gRPC, with stubs generated from the `.proto` files, and reflection.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

use tests::{Cluster, minilm, repository};

#[tokio::test(flavor = "multi_thread")]
async fn python_speaks_to_it() {
    let cluster = Cluster::start(2, &[minilm()]).await;
    let scripts = repository().join("tests/reference");
    let python = Command::new(scripts.join("environment")).arg("client").output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let python = String::from_utf8(python.stdout).unwrap();
    let target = cluster.gateways[0].address.to_string();
    let mut command = tokio::process::Command::new(python.trim());
    command.arg(scripts.join("grpc_client.py")).args(["--target", &target, "--model", "all-MiniLM-L6-v2"]);
    let output = command.output().await.unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
