//! A cluster that trains, and those who submit jobs to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use proto::v1::training_client::TrainingClient;
use proto::v1::{CancelJobRequest, GetJobRequest, Job, JobState, ListJobsRequest, SubmitJobRequest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Cluster, PATIENCE, Plan, Process, checkpoint, repository};
use tokio::time::{self, Instant};
use tonic::Status;
use tonic::transport::Channel;

/// How long a job may take on a noisy machine.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// A cluster with a trainer.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) trainer: Process,
    pub(crate) output: PathBuf,
    hiring: Hiring,
    dir: TempDir,
}

/// What a trainer is told beside the usual.
#[derive(Default)]
pub(crate) struct Hiring {
    pub(crate) flags: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Scene {
    /// A cluster as `plan` says, and a trainer of two devices that writes below its own directory, or to `output`.
    pub(crate) async fn set(plan: Plan, output: Option<&Path>) -> Self {
        Self::set_with(plan, output, Hiring::default()).await
    }

    /// The same, with a trainer that is told more.
    pub(crate) async fn set_with(plan: Plan, output: Option<&Path>, hiring: Hiring) -> Self {
        let dir = TempDir::with_prefix("beige-training-").unwrap();
        let output = output.map_or_else(|| dir.path().join("jobs"), Path::to_owned);
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::copy(repository().join("tests/golden/traces/data/questions.jsonl"), data.join("train.jsonl"))
            .unwrap();
        let cluster = Cluster::of(plan).await;
        let trainer = hire(&cluster, dir.path(), &output, &hiring).await;
        let scene = Self { cluster, trainer, output, hiring, dir };
        scene.known().await;
        scene
    }

    /// Waits until the gateway reaches the trainer.
    async fn known(&self) {
        let begun = Instant::now();
        while let Err(status) = self.client().list(ListJobsRequest {}).await {
            assert!(begun.elapsed() < PATIENCE, "{status}");
            time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills the trainer as a power cut would, and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.trainer.kill().await;
        self.trainer = hire(&self.cluster, self.dir.path(), &self.output, &self.hiring).await;
    }

    /// Where jobs read.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn client(&self) -> TrainingClient<Channel> {
        TrainingClient::new(self.cluster.channel())
    }

    pub(crate) async fn submit(&self, name: &str, spec: &Value) -> Result<Job, Status> {
        let asked = SubmitJobRequest { name: name.to_owned(), spec: spec.to_string() };
        Ok(self.client().submit(asked).await?.into_inner())
    }

    /// The job as it is; a trainer that is away is waited for.
    pub(crate) async fn job(&self, name: &str) -> Job {
        let begun = Instant::now();
        loop {
            match self.client().get(GetJobRequest { name: name.to_owned() }).await {
                Ok(job) => return job.into_inner(),
                Err(status) => assert!(begun.elapsed() < PATIENCE, "{status}"),
            }
            time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn cancel(&self, name: &str) -> Job {
        self.client().cancel(CancelJobRequest { name: name.to_owned() }).await.unwrap().into_inner()
    }

    /// Waits until `is_so` holds for a job.
    pub(crate) async fn until(&self, name: &str, is_so: impl Fn(&Job) -> bool) -> Job {
        let begun = Instant::now();
        loop {
            let job = self.job(name).await;
            if is_so(&job) {
                return job;
            }
            assert!(begun.elapsed() < LONG, "{job:?}");
            time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for the end of a job.
    pub(crate) async fn ended(&self, name: &str) -> Job {
        self.until(name, |job| is_final(job.state())).await
    }

    /// The weights that a job ended with.
    pub(crate) fn weights(&self, name: &str) -> Vec<u8> {
        fs::read(self.output.join(name).join("model/model.safetensors")).unwrap()
    }

    /// Ranks that run, by number.
    pub(crate) fn ranks(&self) -> Vec<(usize, u32)> {
        let trainer = self.trainer.id();
        let children =
            Command::new("ps").args(["-o", "pid=,args=", "--ppid", &trainer.to_string()]).output().unwrap();
        let lines = String::from_utf8_lossy(&children.stdout).into_owned();
        let rank = |line: &str| {
            let mut words = line.split_whitespace();
            let pid = words.next()?.parse().ok()?;
            let rank = words.skip_while(|word| *word != "--rank").nth(1)?.parse().ok()?;
            Some((rank, pid))
        };
        lines.lines().filter_map(rank).collect()
    }
}

async fn hire(cluster: &Cluster, dir: &Path, output: &Path, hiring: &Hiring) -> Process {
    let (data, etcd) = (dir.join("data"), cluster.etcd.endpoint());
    let checkpoints = PathBuf::from(checkpoint("."));
    let mut arguments = vec![
        "serve",
        "--id",
        "trainer",
        "--etcd",
        &etcd,
        "--admin",
        "127.0.0.1:0",
        "--data-root",
        data.to_str().unwrap(),
        "--data-root",
        checkpoints.to_str().unwrap(),
        "--output",
        output.to_str().unwrap(),
        "--ranks",
        "2",
    ];
    arguments.extend(hiring.flags.iter().map(String::as_str));
    Process::spawn_with("beige-trainer", "trainer", (&arguments, &hiring.environment), dir).await
}

pub(crate) fn is_final(state: JobState) -> bool {
    matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

pub(crate) fn signal(name: &str, pid: u32) {
    // It may have ended by itself.
    let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
}

/// A short job of two ranks, with dropout, as its checkpoint has it.
pub(crate) fn job(more: &Value) -> Value {
    let mut job = json!({
        "kind": "embedder",
        "model": checkpoint("xlmr-cls"),
        "train_data": ["train.jsonl"],
        "ranks": 2,
        "train_group_size": 3,
        "query_max_len": 16,
        "passage_max_len": 32,
        "per_device_train_batch_size": 2,
        "negatives_cross_device": true,
        "learning_rate": 1e-3,
        "max_steps": 8,
        "save_steps": 2,
        "timeout_seconds": 60,
    });
    for (field, value) in more.as_object().unwrap() {
        job[field] = value.clone();
    }
    job
}
