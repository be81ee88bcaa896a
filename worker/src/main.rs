//! `beige-worker`: one process for one device.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use telemetry::Logging;
use telemetry::signals::Signals;
use tokio::{runtime, task};
use worker::config::{Config, InvalidConfig};
use worker::launch::launch;
use worker::start::{self, Failure, Sockets};

fn main() -> ExitCode {
    let config = match Config::read(std::env::args_os()) {
        Ok(config) => config,
        Err(error) => return refuse(error),
    };
    let runtime = match runtime::Builder::new_multi_thread().enable_all().thread_name("worker").build() {
        Ok(runtime) => runtime,
        Err(error) => end(&error.into()),
    };
    let served = runtime.block_on(serve(config));
    if let Err(failure) = served {
        end(&failure);
    }
    // A checkpoint may be half loaded, on a thread that is inside libtorch.
    model::exit_now(0)
}

async fn serve(config: Config) -> Result<(), Failure> {
    let etcd = start::connect(&config)?;
    let _telemetry = telemetry::start(&logging(&config))?;
    let mut signals = Signals::listen(config.stdin)?;

    let reader = config.clone();
    let stock = task::spawn_blocking(move || start::open(&reader)).await.map_err(io::Error::from)??;
    let sockets = start::bind(&config).await?;
    announce(&sockets)?;
    // Not cut short by a signal: the device thread would be ended in the middle of libtorch.
    let mut running = launch(&config, stock, sockets, etcd).await?;

    let signal = tokio::select! {
        exit = running.fails() => {
            tracing::error!(error = %exit, "the worker cannot go on");
            running.give_up().await;
            return Err(exit.into());
        }
        signal = signals.leave() => signal,
    };
    tracing::info!(signal, "leaving");
    tokio::select! {
        left = running.leave(config.settle, config.grace) => left?,
        signal = signals.insist() => return Err(Failure::Hurried(signal)),
    }
    tracing::info!("left");
    Ok(())
}

fn logging(config: &Config) -> Logging {
    Logging {
        format: config.log_format,
        filter: config.log.clone(),
        otlp_endpoint: config.otlp_endpoint.clone(),
        service: "beige-worker",
        instance: config.id.to_string(),
    }
}

/// Tells supervisors, on standard output, where the worker listens: two lines whose form is kept.
fn announce(sockets: &Sockets) -> io::Result<()> {
    let (public, admin): (SocketAddr, SocketAddr) =
        (sockets.public.local_addr()?, sockets.admin.local_addr()?);
    tracing::info!(address = %public, %admin, "listening");
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {public}\nadmin on {admin}")?;
    out.flush()
}

/// Bad settings end the process before a socket opens. A request for help is no bad setting.
fn refuse(error: InvalidConfig) -> ExitCode {
    let InvalidConfig::Usage(usage) = error else { end(&error.into()) };
    // There is nobody to tell when there is no terminal.
    let _ = usage.print();
    if usage.use_stderr() {
        ExitCode::from(Failure::from(InvalidConfig::from(usage)).code())
    } else {
        ExitCode::SUCCESS
    }
}

/// Ends the process. The device thread may be in the middle of a batch: what is still running has been given up.
fn end(failure: &Failure) -> ! {
    // The last line of a process that failed, for people; where there is no standard error, nobody reads it.
    let _ = writeln!(io::stderr(), "beige-worker: {failure}");
    model::exit_now(failure.code())
}
