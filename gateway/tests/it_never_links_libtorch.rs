//! The gateway's image is small because libtorch is not in it: nor in anything it depends on.

use std::process::Command;

#[test]
fn no_dependency_is_libtorch() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "gateway", "--edges", "normal,build", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("names are text");
    assert!(tree.contains("tonic v"), "this is no tree: {tree}");
    for line in tree.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        assert!(!["tch", "torch-sys", "torch-ext", "model", "worker"].contains(&name), "{line}");
    }
}
