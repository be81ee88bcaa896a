//! Recorded runs of the reference come out the same here, number by number.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use trainer::trace::{Places, replay};

/// Folders below `root` that hold a run of fine-tuning.
fn traces(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let is_trace = |dir: &PathBuf| {
        let hidden = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // Pre-training has traces of its own kind.
        !hidden && dir.join("hyperparameters.json").exists() && dir.join("samples_rank0.jsonl").exists()
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(is_trace).collect();
    found.sort();
    found
}

#[track_caller]
fn check(dir: &Path) {
    let (code, table) = replayed(dir);
    assert_eq!(code, Some(0), "{}\n{table}", dir.display());
    let losses = table.lines().find_map(|line| line.strip_prefix("losses ")).expect("a row of losses");
    let compared: usize = losses.split_whitespace().next().unwrap().parse().unwrap();
    assert!(compared > 2, "{table}");
}

fn recorded() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/traces")
}

/// `tests/reference/traces.py` records them.
#[test]
fn recorded_traces_come_out_the_same() {
    let traces = traces(&recorded());
    assert_eq!(traces.len(), 12);
    for dir in traces {
        check(&dir);
    }
}

/// A copy of a trace, beside it.
fn copied(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(recorded()).unwrap();
    for entry in fs::read_dir(recorded().join(name)).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

/// A trace like `crossdev-kd` with a text of its settings replaced.
fn altered(from: &str, to: &str) -> tempfile::TempDir {
    let dir = copied("crossdev-kd");
    let path = dir.path().join("hyperparameters.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(path, text.replace(from, to)).unwrap();
    dir
}

#[test]
fn another_run_is_told_from_the_recorded_one() {
    for (from, to, row) in [
        ("\"temperature\": 0.05", "\"temperature\": 0.051", "loss of step 0"),
        ("\"kd_loss_type\": \"kl_div\"", "\"kd_loss_type\": \"m3_kd_loss\"", "loss of step 0"),
        ("\"adam_beta2\": 0.999", "\"adam_beta2\": 0.99", "losses"),
        ("\"max_grad_norm\": 1.0", "\"max_grad_norm\": 5.0", "losses"),
        ("\"learning_rate\": 0.001", "\"learning_rate\": 0.002", "learning rates"),
        ("\"seed\": 42", "\"seed\": 43", "samples rebuilt"),
        ("\"passage_max_len\": 32", "\"passage_max_len\": 20", "token batches rebuilt"),
    ] {
        let dir = altered(from, to);
        let report = replay(dir.path(), &Places::default()).unwrap();
        let wrong: Vec<&str> = report.rows.iter().filter(|row| !row.holds()).map(|row| row.what).collect();
        assert!(wrong.contains(&row) && !report.holds(), "{to}\n{report}");
    }
}

/// Other recorders name other places, say less, and write numbers that are none.
#[test]
fn a_record_may_lack_what_can_be_told_without_it() {
    let dir = copied("crossdev-kd");
    let path = |name: &str| dir.path().join(name);
    let mut told: serde_json::Value = read(&path("hyperparameters.json"));
    for name in ["warmup_steps_resolved", "weight_decay_tensors", "frozen"] {
        told.as_object_mut().unwrap().remove(name).unwrap();
    }
    for name in ["optim", "adam_beta1", "data_seed", "dataloader_num_workers", "max_grad_norm", "bf16"] {
        told["training"].as_object_mut().unwrap().remove(name).unwrap();
    }
    told["training"]["num_train_epochs"] = 3.into();
    told["training"]["label_smoothing_factor"] = 0.into();
    // Some record all that there is.
    told["training"]["per_device_eval_batch_size"] = 8.into();
    told["training"]["train_sampling_strategy"] = "random".into();
    told["training"]["accelerator_config"] =
        serde_json::json!({"split_batches": false, "dispatch_batches": null, "even_batches": true});
    told["initial_model"] = "/of/another/machine/xlmr-cls".into();
    fs::write(path("hyperparameters.json"), told.to_string()).unwrap();
    fs::remove_file(path("final_weights.json")).unwrap();
    for rank in 0..2 {
        let losses = path(&format!("losses_rank{rank}.json"));
        let mut told = read(&losses);
        for step in told["steps"].as_array_mut().unwrap() {
            step.as_object_mut().unwrap().remove("lr").unwrap();
            step.as_object_mut().unwrap().remove("optimizer_step").unwrap();
            step["grad_norm"] = "none".into();
        }
        fs::write(losses, told.to_string().replace("\"none\"", "NaN")).unwrap();
    }
    let report = replay(dir.path(), &Places::default()).unwrap();
    assert!(report.holds(), "{report}");
    let compared = |what: &str| report.rows.iter().find(|row| row.what == what).map(|row| row.compared);
    assert_eq!((compared("losses"), compared("gradient norms")), (Some(10), Some(0)), "{report}");
    assert!(report.notes.iter().any(|note| note.contains("final_weights.json")), "{report}");
}

/// Cycles, lowest rates and the like are in the record's rates alone.
#[test]
fn rates_are_the_records_where_their_schedule_was_told_more() {
    let report = |from: &str, to: &str| {
        let dir = altered(from, to);
        replay(dir.path(), &Places::default()).unwrap()
    };
    for (from, to) in [
        ("\"seed\": 42", "\"seed\": 42, \"lr_scheduler_kwargs\": {\"num_cycles\": 2}"),
        ("\"--seed\"", "\"--lr_scheduler_kwargs\", \"{\\\"num_cycles\\\": 2}\", \"--seed\""),
    ] {
        let report = report(from, to);
        let rates = report.rows.iter().find(|row| row.what == "learning rates").unwrap();
        assert!(report.holds() && rates.compared == 0, "{report}");
        assert!(report.notes.iter().any(|note| note.contains("rates are taken from the record")), "{report}");
    }
}

#[test]
fn batches_by_file_are_not_guessed() {
    let dir = copied("by-file");
    let path = dir.path().join("hyperparameters.json");
    let mut told = read(&path);
    told.as_object_mut().unwrap().remove("argv").unwrap();
    fs::write(path, told.to_string()).unwrap();
    let report = replay(dir.path(), &Places::default()).unwrap();
    assert!(report.holds() && report.notes.iter().any(|note| note.contains("argv")), "{report}");
}

fn read(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What `beige-trainer replay` prints of a trace, and the code that it ends with.
fn replayed(dir: &Path) -> (Option<i32>, String) {
    ended(Command::new(env!("CARGO_BIN_EXE_beige-trainer")).arg("replay").arg(dir))
}

fn ended(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn weights_are_found_among_what_set_up_has_prepared() {
    let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let replayed = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beige-trainer"));
        command.env_remove("BEIGE_CHECKPOINTS").env("BEIGE_CACHE", cache.path());
        ended(command.arg("replay").arg(recorded().join("crossdev-kd")).arg("--root").arg(elsewhere.path()))
    };
    assert_eq!(replayed().0, Some(65));
    let model = cache.path().join("models/some-name");
    fs::create_dir_all(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(recorded().join("../checkpoints/xlmr-cls").join(file), model.join(file)).unwrap();
    }
    let (code, table) = replayed();
    assert_eq!(code, Some(0), "{table}");
    assert!(table.contains("samples are not rebuilt") && table.contains("losses"), "{table}");
}

#[test]
fn the_verb_prints_a_table_and_ends_by_what_it_says() {
    let (code, table) = replayed(&recorded().join("crossdev-kd"));
    assert_eq!(code, Some(0), "{table}");
    assert!(table.contains("loss of step 0") && table.contains("final minus initial"), "{table}");
    let dir = altered("\"temperature\": 0.05", "\"temperature\": 0.051");
    let (code, table) = replayed(dir.path());
    assert_eq!(code, Some(1), "{table}");
    assert!(table.contains("loss of step 0") && table.contains("not hold in another order"), "{table}");
    assert_eq!(replayed(Path::new("/nowhere")).0, Some(74));
}

#[test]
fn settings_that_are_not_known_are_refused_by_name() {
    for (from, to, name) in [
        ("\"temperature\"", "\"temper\"", "temper"),
        ("\"fp16\": false", "\"fp16\": true", "fp16"),
        ("adamw_torch_fused", "adafactor", "adafactor"),
        ("\"kl_div\"", "\"other_loss\"", "other_loss"),
        ("\"seed\": 42", "\"seed\": 42, \"train_sampling_strategy\": \"group_by_length\"", "group_by_length"),
        ("\"cls\"", "\"max\"", "sentence_pooling_method max"),
        ("\"initial_model_sha256\": \"", "\"initial_model_sha256\": \"0", "model.safetensors"),
    ] {
        let dir = altered(from, to);
        let sentence = replay(dir.path(), &Places::default()).unwrap_err().to_string();
        assert!(sentence.contains(name), "{sentence}");
    }
}

/// Larger traces, which not every checkout has beside it.
#[test]
fn supplied_traces_come_out_the_same() {
    for dir in traces(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces")) {
        check(&dir);
    }
}
