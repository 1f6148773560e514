//! hafsd's side of the API: HTTP on the control socket, as `docs/api.md` says, and the conversation with mount helpers.
//!
//! Requests are handed to [`Node`] on threads that may block; here is only what HTTP needs: paths, bodies, status codes.

use std::io;
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body as AnswerBody, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use hafs_fs::CheckProgress;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::api::{
    ApiError, ChangedVolume, CheckLine, CreateVolume, ErrorCode, MountList, Ready, RepairVolume,
    SetVolume, Versioned, VolumeList,
};
use crate::metrics;
use crate::node::Node;

mod body;
mod connection;
mod mounting;

use self::body::Body;
use self::connection::Listener;

/// Between two lines of progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);
/// Lines of a check that wait for a slow reader; progress beyond that is left out, the report waits.
const CHECK_LINES_MAX: usize = 16;

/// Serves HTTP until `stop` is done, then until the requests under way are answered.
pub async fn serve_http(
    listener: StdUnixListener,
    node: Arc<Node>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    connection::serve(Listener::unix(listener)?, router(node), stop).await;
    Ok(())
}

/// Serves the metrics, and nothing else, on a port of the loopback, until `stop` is done.
pub async fn serve_metrics(
    listener: TcpListener,
    node: Arc<Node>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .fallback(no_such_endpoint)
        .method_not_allowed_fallback(no_such_method)
        .with_state(node);
    connection::serve(Listener::tcp(listener)?, router, stop).await;
    Ok(())
}

/// Takes mount helpers' conversations, in threads of its own, for as long as the process lives.
pub fn serve_mounting(listener: OwnedFd, node: Arc<Node>) -> io::Result<()> {
    mounting::serve(listener, node)
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/ready", get(ready))
        .route("/v1/status", get(status))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route(
            "/v1/volumes/{name}",
            get(volume).delete(delete_volume).patch(set_volume),
        )
        .route("/v1/volumes/{name}/check", post(check_volume))
        .route("/v1/volumes/{name}/repair", post(repair_volume))
        .route("/v1/replicas", get(replicas))
        .route("/v1/mounts", get(mounts))
        .route("/metrics", get(metrics))
        .fallback(no_such_endpoint)
        .method_not_allowed_fallback(no_such_method)
        .with_state(node)
}

type Answer<T> = Result<Json<Versioned<T>>, ApiError>;

type NamePart = Result<Path<String>, PathRejection>;

fn volume_name(part: NamePart) -> Result<String, ApiError> {
    part.map(|Path(name)| name).map_err(|rejection| {
        ApiError::new(ErrorCode::BadRequest, "the path is not understood")
            .why(rejection.body_text())
            .next("names of volumes are a-z, 0-9, and inside - _ .")
    })
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    node: Arc<Node>,
    work: impl FnOnce(&Node) -> Result<T, ApiError> + Send + 'static,
) -> Answer<T> {
    let value = tokio::task::spawn_blocking(move || work(&node))
        .await
        .expect("a panic aborts the process, and nobody cancels the task")?;
    Ok(Json(Versioned::new(value)))
}

async fn ready(State(node): State<Arc<Node>>) -> Answer<Ready> {
    if node.is_ready() {
        return Ok(Json(Versioned::new(Ready { ready: true })));
    }
    Err(ApiError::new(ErrorCode::NotReady, "hafsd is not ready")
        .why("it is opening its volumes, or ending")
        .next("ask again; hafsctl status shows how far it is"))
}

async fn status(State(node): State<Arc<Node>>) -> Answer<super::api::Status> {
    blocking(node, Node::status).await
}

async fn volumes(State(node): State<Arc<Node>>) -> Answer<VolumeList> {
    blocking(node, |node| {
        Ok(VolumeList {
            volumes: node.volumes(),
        })
    })
    .await
}

async fn create_volume(
    State(node): State<Arc<Node>>,
    Body(create): Body<CreateVolume>,
) -> Result<Response, ApiError> {
    let created = blocking(node, move |node| node.create_volume(&create)).await?;
    Ok((StatusCode::CREATED, created).into_response())
}

async fn volume(State(node): State<Arc<Node>>, name: NamePart) -> Answer<super::api::Volume> {
    let name = volume_name(name)?;
    blocking(node, move |node| node.volume(&name)).await
}

async fn set_volume(
    State(node): State<Arc<Node>>,
    name: NamePart,
    Body(set): Body<SetVolume>,
) -> Answer<ChangedVolume> {
    let name = volume_name(name)?;
    blocking(node, move |node| node.set_volume(&name, &set)).await
}

async fn delete_volume(
    State(node): State<Arc<Node>>,
    name: NamePart,
) -> Answer<super::api::DeletedVolume> {
    let name = volume_name(name)?;
    blocking(node, move |node| node.delete_volume(&name)).await
}

async fn repair_volume(
    State(node): State<Arc<Node>>,
    name: NamePart,
    Body(ask): Body<RepairVolume>,
) -> Answer<super::api::RepairedVolume> {
    let name = volume_name(name)?;
    blocking(node, move |node| node.repair_volume(&name, ask)).await
}

/// Refusals that are known at once have their status code; what happens later is a line of the answer.
async fn check_volume(State(node): State<Arc<Node>>, name: NamePart) -> Result<Response, ApiError> {
    let name = volume_name(name)?;
    let (sender, mut receiver) = mpsc::channel(CHECK_LINES_MAX);
    tokio::task::spawn_blocking(move || {
        let mut told = Instant::now();
        let mut watch = |at: &CheckProgress| {
            #[cfg(feature = "failpoints")]
            fail::fail_point!("check-progress", |_| ControlFlow::Continue(()));
            if sender.is_closed() {
                return ControlFlow::Break(());
            }
            if told.elapsed() >= PROGRESS_PAUSE {
                told = Instant::now();
                // Full: the reader is slow, and the next progress says more.
                let _ = sender.try_send(CheckLine::Progress {
                    inodes_done: at.inodes_done,
                    inodes_total: at.inodes_total,
                    bytes_done: at.bytes_done,
                    bytes_total: at.bytes_total,
                });
            }
            ControlFlow::Continue(())
        };
        let line = match node.check_volume(&name, &mut watch) {
            Ok(report) => CheckLine::Report(report),
            Err(error) => CheckLine::Error(error),
        };
        // Nobody reads any more: the report is in the log.
        let _ = sender.blocking_send(line);
    });
    let first = receiver.recv().await.expect("a check ends with a line");
    if let CheckLine::Error(error) = first {
        return Err(error);
    }
    let lines = stream::unfold((Some(first), receiver), |(first, mut receiver)| async {
        let line = match first {
            Some(line) => line,
            None => receiver.recv().await?,
        };
        Some((encode_line(&line), (None, receiver)))
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((content_type, AnswerBody::from_stream(lines)).into_response())
}

fn encode_line(line: &CheckLine) -> Result<Bytes, serde_json::Error> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplicasQuery {
    volume: Option<String>,
}

async fn replicas(
    State(node): State<Arc<Node>>,
    query: Result<Query<ReplicasQuery>, QueryRejection>,
) -> Answer<super::api::ReplicaList> {
    let Query(query) = query.map_err(|rejection| {
        ApiError::new(ErrorCode::BadRequest, "the query is not understood")
            .why(rejection.body_text())
            .next("give volume=NAME or nothing")
    })?;
    blocking(node, move |node| node.replicas(query.volume.as_deref())).await
}

async fn mounts(State(node): State<Arc<Node>>) -> Answer<MountList> {
    blocking(node, |node| {
        Ok(MountList {
            mounts: node.mounts(),
        })
    })
    .await
}

/// No JSON: the text format that Prometheus defines.
async fn metrics(State(node): State<Arc<Node>>) -> Response {
    let text = tokio::task::spawn_blocking(move || metrics::encode(node.scrape()))
        .await
        .expect("a panic aborts the process, and nobody cancels the task");
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn no_such_endpoint() -> ApiError {
    ApiError::new(ErrorCode::NoSuchEndpoint, "no such path in this API")
        .next("docs/api.md lists the paths")
}

async fn no_such_method() -> Response {
    let error = ApiError::new(
        ErrorCode::NoSuchEndpoint,
        "this path does not take this method",
    )
    .next("docs/api.md lists the methods");
    (StatusCode::METHOD_NOT_ALLOWED, Json(Versioned::new(error))).into_response()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.code {
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::NoSuchEndpoint | ErrorCode::VolumeNotFound => StatusCode::NOT_FOUND,
            ErrorCode::VolumeExists
            | ErrorCode::VolumeMounted
            | ErrorCode::VolumeFailed
            | ErrorCode::VolumeBusy => StatusCode::CONFLICT,
            ErrorCode::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            ErrorCode::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            ErrorCode::Internal | ErrorCode::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        };
        tracing::debug!(code = ?self.code, why = self.why, "refused: {self}");
        (status, Json(Versioned::new(self))).into_response()
    }
}
