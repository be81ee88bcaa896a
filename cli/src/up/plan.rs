//! Everything decided before the first process starts: programs, models, ports, command lines.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use tempfile::TempDir;

use crate::config;
use crate::failure::Failure;

use super::child::{Leash, Program};
use super::ports;
use super::spec::ModelSpec;
use super::{Dtype, LogFormat, UpArgs};

/// The name of the cluster: whose keys in etcd these are.
const CLUSTER: &str = "local";
/// What set-up fetches, under the cache.
const DEFAULT_MODEL: &str = "models/all-MiniLM-L6-v2";

/// A cluster that can be started.
pub(crate) struct Plan {
    programs: Programs,
    pub(crate) models: Vec<ModelSpec>,
    pub(crate) workers: Vec<WorkerPlan>,
    /// The first is where `--listen` and `--admin` say.
    pub(crate) gateways: Vec<GatewayPlan>,
    trainer: Option<TrainerPlan>,
    etcd_client: SocketAddr,
    etcd_peer: SocketAddr,
    data: Data,
    /// The checkpoint store.
    pub(crate) store: String,
    dtype: Dtype,
    threads: usize,
    log_format: LogFormat,
    pub(crate) grace: Duration,
    pub(crate) json: bool,
}

/// One worker.
pub(crate) struct WorkerPlan {
    pub(crate) id: String,
    pub(crate) admin: SocketAddr,
    device: String,
}

/// One gateway.
pub(crate) struct GatewayPlan {
    pub(crate) id: String,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// The trainer.
struct TrainerPlan {
    program: PathBuf,
    admin: SocketAddr,
    /// What jobs may read.
    roots: Vec<PathBuf>,
}

/// Where the cluster keeps its data: etcd's, published checkpoints, the workers' cache of them, and what
/// jobs write.
enum Data {
    /// Removed when the plan is dropped.
    Temporary(TempDir),
    Kept(PathBuf),
}

struct Programs {
    etcd: PathBuf,
    /// Util-linux's: it has the kernel end etcd with this process. Without it etcd outlives a SIGKILL.
    setpriv: Option<PathBuf>,
    gateway: PathBuf,
    worker: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, Failure> {
        let find = |name: &str, remedy: &str| {
            let missing = || Failure::Local(anyhow::anyhow!("the program {name} is missing: {remedy}"));
            config::find_program(name).ok_or_else(missing)
        };
        let build = "build it beside `beige`, with `cargo build --workspace --bins`, or put it on the PATH";
        Ok(Self {
            etcd: find(
                "etcd",
                "install it, on Debian with `apt-get install etcd-server`, or put it on the PATH",
            )?,
            setpriv: config::find_program("setpriv"),
            gateway: find("beige-gateway", build)?,
            worker: find("beige-worker", build)?,
        })
    }
}

impl Data {
    /// One of its parts: a directory for etcd, for the store, for the cache or for jobs.
    fn part(&self, name: &str) -> PathBuf {
        let root = match self {
            Self::Temporary(directory) => directory.path(),
            Self::Kept(directory) => directory,
        };
        root.join(name)
    }
}

impl Plan {
    /// Checks everything that can be checked before a process starts.
    pub(crate) fn from_args(args: &UpArgs) -> Result<Self, Failure> {
        let models = models(&args.models)?;
        let programs = Programs::find()?;
        let reserve = || ports::reserve().context("cannot reserve a port");
        let workers = (0..usize::from(args.workers))
            .map(|number| {
                let device = args.devices[number % args.devices.len()].0.clone();
                Ok(WorkerPlan { id: format!("worker-{number}"), admin: reserve()?, device })
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let data = data(args.data.clone())?;
        let trainer = if args.no_trainer { None } else { Some(trainer(args, &models, reserve()?)?) };
        let store = match &args.store {
            Some(store) => store.clone(),
            None => format!("file://{}", data.part("store").display()),
        };
        Ok(Self {
            programs,
            models,
            gateways: gateways(args)?,
            trainer,
            store,
            threads: args.threads.map_or_else(|| share_of_cores(workers.len()), usize::from),
            workers,
            etcd_client: reserve()?,
            etcd_peer: reserve()?,
            data,
            dtype: args.dtype,
            log_format: args.log_format,
            grace: Duration::from_secs(args.grace),
            json: args.json,
        })
    }

    /// Where etcd answers.
    pub(crate) fn etcd_url(&self) -> String {
        format!("http://{}", self.etcd_client)
    }

    /// etcd, a cluster of one.
    pub(crate) fn etcd(&self) -> Program {
        let (client, peer) = (self.etcd_url(), format!("http://{}", self.etcd_peer));
        let mut args = flags(&[
            ("name", "local"),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &format!("local={peer}")),
            // Alone, it need not wait for others before it leads.
            ("heartbeat-interval", "50"),
            ("election-timeout", "250"),
            ("auto-compaction-mode", "periodic"),
            ("auto-compaction-retention", "1h"),
            ("logger", "zap"),
            ("log-level", "warn"),
        ]);
        args.extend(["--data-dir".into(), self.data.part("etcd").into()]);
        let path = match &self.programs.setpriv {
            None => self.programs.etcd.clone(),
            Some(setpriv) => {
                let wrap =
                    ["--pdeathsig".into(), "TERM".into(), "--".into(), self.programs.etcd.clone().into()];
                args.splice(0..0, wrap);
                setpriv.clone()
            }
        };
        let health = (self.etcd_client, "/health");
        Program { name: "etcd".to_owned(), path, args, health, leash: Leash::Signal }
    }

    /// Gateway number `number`.
    pub(crate) fn gateway(&self, number: usize) -> Program {
        let GatewayPlan { id, listen, admin } = &self.gateways[number];
        let mut args = flags(&[
            ("id", id),
            ("etcd", &self.etcd_url()),
            ("cluster", CLUSTER),
            ("listen", &listen.to_string()),
            ("admin", &admin.to_string()),
            ("store", &self.store),
            ("log-format", &flag_value(&self.log_format)),
        ]);
        args.push("--exit-on-stdin-eof".into());
        let health = (ports::reachable(*admin), "/readyz");
        Program { name: id.clone(), path: self.programs.gateway.clone(), args, health, leash: Leash::Stdin }
    }

    /// The trainer, where there is one.
    pub(crate) fn trainer(&self) -> Option<Program> {
        let TrainerPlan { program, admin, roots } = self.trainer.as_ref()?;
        let mut args = vec!["serve".into()];
        args.extend(flags(&[
            ("id", "trainer"),
            ("etcd", &self.etcd_url()),
            ("cluster", CLUSTER),
            ("listen", "127.0.0.1:0"),
            ("admin", &admin.to_string()),
            ("log-format", &flag_value(&self.log_format)),
        ]));
        args.extend(roots.iter().flat_map(|root| ["--data-root".into(), root.into()]));
        args.extend(["--output".into(), self.data.part("jobs").into(), "--exit-on-stdin-eof".into()]);
        let (path, health) = (program.clone(), (*admin, "/readyz"));
        Some(Program { name: "trainer".to_owned(), path, args, health, leash: Leash::Stdin })
    }

    /// Worker number `number`.
    pub(crate) fn worker(&self, number: usize) -> Program {
        let worker = &self.workers[number];
        let mut args = flags(&[
            ("id", &worker.id),
            ("etcd", &self.etcd_url()),
            ("cluster", CLUSTER),
            ("listen", "127.0.0.1:0"),
            ("admin", &worker.admin.to_string()),
            ("device", &worker.device),
            ("dtype", &flag_value(&self.dtype)),
            ("threads", &self.threads.to_string()),
            ("store", &self.store),
            ("log-format", &flag_value(&self.log_format)),
        ]);
        args.extend(["--cache".into(), self.data.part("cache").into()]);
        args.extend(self.models.iter().flat_map(|model| ["--model".into(), model.to_flag().into()]));
        args.push("--exit-on-stdin-eof".into());
        let health = (worker.admin, "/readyz");
        Program {
            name: worker.id.clone(),
            path: self.programs.worker.clone(),
            args,
            health,
            leash: Leash::Stdin,
        }
    }
}

/// A trainer, which reads where it is told to and where models are.
fn trainer(args: &UpArgs, models: &[ModelSpec], admin: SocketAddr) -> Result<TrainerPlan, Failure> {
    let remedy = "build it beside `beige`, with `cargo build --workspace --bins`, put it on the PATH, or say --no-trainer";
    let missing = || Failure::Local(anyhow::anyhow!("the program beige-trainer is missing: {remedy}"));
    let program = config::find_program("beige-trainer").ok_or_else(missing)?;
    if !args.data_root.is_dir() {
        return Err(Failure::Usage(format!(
            "--data-root: there is no directory {}",
            args.data_root.display()
        )));
    }
    let roots =
        std::iter::once(args.data_root.clone()).chain(models.iter().map(|model| model.directory.clone()));
    Ok(TrainerPlan { program, admin, roots: roots.collect() })
}

fn flags(pairs: &[(&str, &str)]) -> Vec<OsString> {
    pairs.iter().flat_map(|(name, value)| [format!("--{name}").into(), OsString::from(value)]).collect()
}

fn flag_value(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// The models asked for, or the default one; each is a directory that holds one.
fn models(asked: &[ModelSpec]) -> Result<Vec<ModelSpec>, Failure> {
    let models = if asked.is_empty() { vec![default_model()?] } else { asked.to_vec() };
    for (i, model) in models.iter().enumerate() {
        let directory = model.directory.display();
        if !model.directory.is_dir() {
            return Err(Failure::Usage(format!("--model: there is no directory {directory}")));
        }
        if !model.directory.join("config.json").is_file() {
            return Err(Failure::Usage(format!(
                "--model: {directory} has no config.json, so it holds no model"
            )));
        }
        if models[..i].iter().any(|other| other.name == model.name) {
            let name = &model.name;
            return Err(Failure::Usage(format!(
                "--model: two models are called {name}; name them, as NAME=DIR"
            )));
        }
    }
    Ok(models)
}

fn default_model() -> Result<ModelSpec, Failure> {
    let directory =
        config::cache().map(|cache| cache.join(DEFAULT_MODEL)).filter(|directory| directory.is_dir());
    let Some(directory) = directory else {
        let remedy = "name one with --model DIR, or fetch the default model with `scripts/setup`";
        return Err(Failure::Usage(format!("there is no model to serve: {remedy}")));
    };
    let name = DEFAULT_MODEL.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(ModelSpec { name, directory, options: String::new() })
}

/// The first gateway where it is asked for, the others where there is room.
fn gateways(args: &UpArgs) -> Result<Vec<GatewayPlan>, Failure> {
    let reserve = || ports::reserve().context("cannot reserve a port");
    let first = GatewayPlan {
        id: "gateway".to_owned(),
        listen: ports::check(args.listen, "--listen")?,
        admin: ports::check(args.admin, "--admin")?,
    };
    let mut gateways = vec![first];
    for number in 1..args.gateways {
        let listen = SocketAddr::new(args.listen.ip(), reserve()?.port());
        gateways.push(GatewayPlan { id: format!("gateway-{number}"), listen, admin: reserve()? });
    }
    Ok(gateways)
}

fn data(kept: Option<PathBuf>) -> Result<Data, Failure> {
    let data = if let Some(directory) = kept {
        let made = fs::create_dir_all(&directory).and_then(|()| directory.canonicalize());
        Data::Kept(made.with_context(|| format!("cannot keep data in {}", directory.display()))?)
    } else {
        let directory = tempfile::Builder::new().prefix("beige-up-").tempdir();
        Data::Temporary(directory.context("cannot make a temporary directory")?)
    };
    for part in ["etcd", "store", "cache", "jobs"] {
        let directory = data.part(part);
        // etcd warns of a directory that others may read.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    Ok(data)
}

/// Threads of each worker such that all of them together use each core once.
fn share_of_cores(workers: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    (cores / workers).max(1)
}
