//! `hafsd`: the daemon of a node. Opens its volumes, serves their mounts and the control socket.
//!
//! Wiring only: settings, log, data directory, sockets, node, signals, in that order.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use hafs_tools::command_line::Hafsd;
use hafs_tools::config::{Arguments, Config};
use hafs_tools::control::server;
use hafs_tools::control::socket::ControlSockets;
use hafs_tools::node::Node;
use hafs_tools::node::datadir::DataDir;
use hafs_tools::output::{self, Exit, Refusal};
use hafs_tools::process;
use hafs_tools::telemetry;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long requests under way may take once the end has begun; a check of a big volume takes longer and is cut off.
const REQUESTS_WAIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let line = Hafsd::parse();
    let arguments = Arguments {
        data_dir: line.data_dir,
        socket: line.socket,
        config: line.config,
        metrics: line.metrics,
        log_format: line.log_format,
    };
    match run(arguments) {
        Ok(exit) => exit.into(),
        Err(refusal) => {
            output::refusal("hafsd", &refusal);
            refusal.exit.into()
        }
    }
}

fn run(arguments: Arguments) -> Result<Exit, Refusal> {
    let config = Config::resolve(arguments)?;
    telemetry::init(config.log_format, &config.log_filter).map_err(|error| {
        Refusal::new(format!("{error:#}")).next("correct log_filter in the configuration file")
    })?;
    #[cfg(feature = "failpoints")]
    set_fail_points();
    process::prepare();
    let data = DataDir::open(&config.data_dir)?;
    let sockets = ControlSockets::bind(&config.socket)?;
    let metrics = config.metrics.map(bind_metrics).transpose()?;
    let (id, fresh) = (data.node(), data.is_fresh());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Refusal::new("cannot start threads").why(error.to_string()))?;
    let node = Node::load(
        data,
        config.socket.clone(),
        config.cache_bytes,
        runtime.handle().clone(),
    )?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %id,
        data_dir = %config.data_dir.display(),
        socket = %config.socket.display(),
        fresh,
        "hafsd starts"
    );
    runtime.block_on(serve(node, sockets, metrics))
}

/// Fail points are set from the environment variable FAILPOINTS, for as long as the process lives.
#[cfg(feature = "failpoints")]
fn set_fail_points() {
    std::mem::forget(fail::FailScenario::setup());
    for (name, action) in fail::list() {
        tracing::info!(name, action, "fail point set: this hafsd is for tests");
    }
}

fn bind_metrics(address: SocketAddr) -> Result<TcpListener, Refusal> {
    let failed = |error: std::io::Error| {
        Refusal::new(format!("metrics cannot be served on {address}"))
            .why(error.to_string())
            .next("choose another port with --metrics, or leave it out")
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "metrics are served");
    Ok(listener)
}

async fn serve(
    node: Arc<Node>,
    sockets: ControlSockets,
    metrics: Option<TcpListener>,
) -> Result<Exit, Refusal> {
    let failed =
        |what: &'static str| move |error: std::io::Error| Refusal::new(what).why(error.to_string());
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("cannot take signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("cannot take signals"))?;
    let (http, fds, names) = sockets.into_parts();
    let (stop, mut stopped) = watch::channel(false);
    if let Some(listener) = metrics {
        let mut stopped = stopped.clone();
        let stop = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        tokio::spawn(server::serve_metrics(listener, Arc::clone(&node), stop));
    }
    server::serve_mounting(fds, Arc::clone(&node)).map_err(failed("cannot start threads"))?;
    let http = tokio::spawn(server::serve_http(http, Arc::clone(&node), async move {
        // An error means that the sender is gone: the end as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    }));

    tokio::spawn(Arc::clone(&node).keep_noting());
    let opening = {
        let node = Arc::clone(&node);
        tokio::task::spawn_blocking(move || {
            node.clear_dead_mounts();
            node.open_volumes();
        })
    };
    let ended = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(ended);
    let why = tokio::select! {
        why = &mut ended => why,
        _ = opening => {
            ready();
            ended.await
        }
    };
    tracing::info!(why, "hafsd ends");
    tell(NotifyState::Stopping);
    names.remove();
    // Nobody is left to hear of it if the server is gone.
    let _ = stop.send(true);
    if tokio::time::timeout(REQUESTS_WAIT, http).await.is_err() {
        tracing::warn!("requests under way are cut off");
    }
    let closed = tokio::task::spawn_blocking(move || node.shut_down()).await;
    tracing::info!("hafsd ended");
    // Not by returning: a dropped runtime would wait for threads that are still in a request.
    let exit = if closed.unwrap_or(false) {
        Exit::Ok
    } else {
        Exit::Error
    };
    std::process::exit(exit as i32)
}

fn ready() {
    tracing::info!("ready");
    tell(NotifyState::Ready);
}

/// Does nothing where systemd did not start us.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}
