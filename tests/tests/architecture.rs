//! The edges between crates are those that ARCHITECTURE.md draws.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;
use tests::repository;

/// Who may depend on whom, tests aside.
const EDGES: [(&str, &[&str]); 14] = [
    ("bench", &["proto"]),
    ("cli", &["bench", "manifest", "proto", "publisher", "tls"]),
    ("cluster", &["manifest", "tls"]),
    ("gateway", &["cluster", "manifest", "proto", "store", "telemetry", "tls"]),
    ("manifest", &[]),
    ("model", &["manifest", "torch-ext"]),
    ("proto", &[]),
    ("publisher", &["manifest", "proto"]),
    ("store", &["manifest"]),
    ("telemetry", &[]),
    ("tls", &[]),
    ("torch-ext", &[]),
    (
        "trainer",
        &["cluster", "manifest", "model", "proto", "publisher", "store", "telemetry", "tls", "torch-ext"],
    ),
    ("worker", &["cluster", "manifest", "model", "proto", "store", "telemetry", "tls"]),
];

fn metadata() -> Value {
    // Crates for other systems may never have been fetched.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--offline",
        "--filter-platform",
        &platform,
    ]);
    let output = command.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// For each package id, what it depends on outside of tests.
fn dependencies(metadata: &Value) -> BTreeMap<String, Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let needed = |dependency: &&Value| {
        dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev")
    };
    let entry = |node: &Value| {
        let needs = node["deps"].as_array().unwrap().iter().filter(needed).map(|needed| text(&needed["pkg"]));
        (text(&node["id"]), needs.collect())
    };
    nodes.iter().map(entry).collect()
}

fn names(metadata: &Value) -> BTreeMap<String, String> {
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|p| (p["id"].as_str().unwrap().to_owned(), p["name"].as_str().unwrap().to_owned()))
        .collect()
}

#[test]
fn crates_depend_on_each_other_as_drawn() {
    let metadata = metadata();
    let (names, dependencies) = (names(&metadata), dependencies(&metadata));
    let members: BTreeSet<&str> =
        metadata["workspace_members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    let mut found = BTreeMap::new();
    for member in members.iter().filter(|member| names[**member] != "tests") {
        let inside = dependencies[*member].iter().filter(|needed| members.contains(needed.as_str()));
        found.insert(
            names[*member].as_str(),
            inside.map(|needed| names[needed].as_str()).collect::<BTreeSet<_>>(),
        );
    }
    let drawn = EDGES.into_iter().map(|(member, needs)| (member, needs.iter().copied().collect())).collect();
    assert_eq!(found, drawn);
}

#[test]
fn the_gateway_and_the_command_line_never_link_libtorch() {
    let metadata = metadata();
    let (names, dependencies) = (names(&metadata), dependencies(&metadata));
    let reached = |program: &str| {
        let start =
            names.iter().find(|(id, name)| *name == program && dependencies.contains_key(*id)).unwrap();
        let (mut seen, mut left) = (BTreeSet::new(), vec![start.0.clone()]);
        while let Some(id) = left.pop() {
            left.extend(dependencies[&id].iter().filter(|needed| !seen.contains(*needed)).cloned());
            seen.insert(id);
        }
        seen.iter().map(|id| names[id].as_str()).collect::<BTreeSet<_>>()
    };
    assert!(reached("worker").contains("torch-sys"), "the walk finds what is there");
    for program in ["gateway", "cli"] {
        let linked = reached(program);
        assert!(linked.contains("tonic"), "the walk finds what is there");
        for forbidden in ["tch", "torch-sys", "torch-ext", "model"] {
            assert!(!linked.contains(forbidden), "{program} links {forbidden}");
        }
    }
}

#[test]
fn the_map_names_every_crate() {
    let map = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    for (member, _) in EDGES {
        assert!(map.contains(&format!("| `{member}` |")), "{member}");
    }
}
