//! Asks hafsd over its control socket: one HTTP/1.1 request a connection.
//!
//! `hafsctl` uses it. Every wait has a bound; what goes wrong comes back as a [`Refusal`] that can be printed as it is.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::api::{ApiError, Versioned};
use crate::output::{Exit, Refusal};

/// Longest line of a streamed answer; hafsd's reports stay far below.
const LINE_BYTES_MAX: usize = 16 << 20;

/// A hafsd, by its socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Nothing is connected yet. `timeout` bounds each request, or each line of a streamed answer.
    pub const fn new(socket: PathBuf, timeout: Duration) -> Self {
        Self { socket, timeout }
    }

    /// `GET path`
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Versioned<T>, Refusal> {
        self.request(Method::GET, path, None::<&()>).await
    }

    /// `POST path` with `body`
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Versioned<T>, Refusal> {
        self.request(Method::POST, path, Some(body)).await
    }

    /// `PATCH path` with `body`
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Versioned<T>, Refusal> {
        self.request(Method::PATCH, path, Some(body)).await
    }

    /// `DELETE path`
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<Versioned<T>, Refusal> {
        self.request(Method::DELETE, path, None::<&()>).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Versioned<T>, Refusal> {
        let answer = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let body = response
                .into_body()
                .collect()
                .await
                .map_err(|error| broken(&error))?;
            parse(status, &body.to_bytes())
        };
        timeout(self.timeout, answer)
            .await
            .map_err(|_| self.timed_out())?
    }

    /// `POST path`, then calls `each` for every line of the answer, as it arrives.
    pub async fn post_lines<T: DeserializeOwned>(
        &self,
        path: &str,
        mut each: impl FnMut(T),
    ) -> Result<(), Refusal> {
        let send = self.send(Method::POST, path, None::<&()>);
        let response = timeout(self.timeout, send)
            .await
            .map_err(|_| self.timed_out())??;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let rest = timeout(self.timeout, body.collect())
                .await
                .map_err(|_| self.timed_out())?;
            let bytes = rest.map_err(|error| broken(&error))?.to_bytes();
            return Err(refused(status, &bytes));
        }
        let mut pending: Vec<u8> = Vec::new();
        while let Some(frame) = timeout(self.timeout, body.frame())
            .await
            .map_err(|_| self.timed_out())?
        {
            let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() else {
                continue;
            };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                each(serde_json::from_slice(&line).map_err(|error| not_ours(&error.to_string()))?);
            }
            if pending.len() > LINE_BYTES_MAX {
                return Err(not_ours("a line without end"));
            }
        }
        if pending.is_empty() {
            Ok(())
        } else {
            Err(not_ours("the last line is cut off"))
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>, Refusal> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        tokio::spawn(connection);
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).expect("the API's types are JSON"),
            None => Vec::new(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "hafsd");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|error| {
                Refusal::new(format!("`{path}` cannot be asked for")).why(error.to_string())
            })?;
        sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))
    }

    async fn connect(&self) -> Result<UnixStream, Refusal> {
        let (socket, wait) = (self.socket.clone(), self.timeout);
        let connected = tokio::task::spawn_blocking(move || connect(&socket, wait))
            .await
            .expect("connecting does not panic");
        let stream = connected.and_then(UnixStream::from_std);
        stream.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => self.timed_out(),
            _ => no_daemon(&self.socket, "--socket", &error),
        })
    }

    fn timed_out(&self) -> Refusal {
        Refusal::new(format!(
            "hafsd did not answer within {} s",
            self.timeout.as_secs()
        ))
        .why("it is busy or stuck; what was asked for may still happen")
        .next("ask again with a longer --timeout, and look at hafsd's log")
        .exit(Exit::Timeout)
    }
}

/// Waits for a place in the listener's queue; a socket that does not block would be turned away when the queue is full.
fn connect(path: &Path, wait: Duration) -> io::Result<StdUnixStream> {
    let flags = net::SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(wait))?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = StdUnixStream::from(socket);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// `name` as one part of a path: all but letters, digits, `-`, `_`, `.` and `~` as `%XX`.
pub fn path_part(name: &str) -> String {
    use std::fmt::Write as _;
    let mut part = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            part.push(char::from(byte));
        } else {
            write!(part, "%{byte:02X}").expect("a String takes all");
        }
    }
    part
}

/// The refusal when nobody listens on `socket`, whose name is given by `option`. The mount helper says the same.
pub fn no_daemon(socket: &Path, option: &str, error: &io::Error) -> Refusal {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Refusal::new(format!("cannot ask the hafsd on {socket}"))
                .why("this user may not use the socket")
                .next("run it as root")
        }
        _ => Refusal::new(format!("no hafsd answers on {socket}"))
            .why(error.to_string())
            .next(format!(
                "start hafsd, or name its socket with {option} or HAFS_SOCKET"
            )),
    }
}

fn parse<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<Versioned<T>, Refusal> {
    if status.is_success() {
        serde_json::from_slice(body).map_err(|error| not_ours(&error.to_string()))
    } else {
        Err(refused(status, body))
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Refusal {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(error) => error.into(),
        Err(_) => not_ours(&format!("HTTP status {status}")),
    }
}

fn broken(error: &hyper::Error) -> Refusal {
    Refusal::new("the connection to hafsd broke")
        .why(crate::output::chain(error))
        .next("look at hafsd's log; what was asked for may have happened")
}

fn not_ours(detail: &str) -> Refusal {
    Refusal::new("the answer was not understood")
        .why(detail.to_owned())
        .next("check that the socket is hafsd's, and of the same version as this program")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_part_of_a_path() {
        assert_eq!(path_part("pg-main_1.x"), "pg-main_1.x");
        assert_eq!(path_part("a/b?c d%"), "a%2Fb%3Fc%20d%25");
    }

    #[test]
    fn an_answer_that_is_not_ours_is_said_so() {
        let refusal = refused(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(refusal.error, "the answer was not understood");
    }
}
