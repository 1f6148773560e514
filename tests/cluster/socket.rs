//! The control socket against clients that do nothing, too much, or the wrong thing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hafs_tests::{Daemon, Launch, Scratch, requirement};
use serde_json::Value;

/// What a client may take; hafsd is far quicker, unless the machine is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("hafsd listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Everything up to the end of the connection.
fn rest(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    stream
        .read_to_end(&mut text)
        .expect("hafsd ends the connection");
    String::from_utf8(text).expect("text")
}

/// Sends a request, and gives status code and body.
fn ask(socket: &Path, request: &[u8]) -> (String, Value) {
    let mut stream = connect(socket);
    // hafsd may answer and hang up before it has read all of it.
    let _ = stream.write_all(request);
    let answer = rest(&mut stream);
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).expect("a status").to_owned();
    let body = serde_json::from_str(body)
        .unwrap_or_else(|error| panic!("{error} in the body of {answer}"));
    (status, body)
}

fn post(body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST /v1/volumes HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").into()
}

#[test]
fn clients_that_do_nothing_hold_up_nobody_for_long() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    // As many as hafsd takes at a time, and as many as wait to be taken.
    let idle: Vec<UnixStream> = (0..256).map(|_| connect(daemon.socket())).collect();
    let began = Instant::now();
    daemon.ctl(&["--timeout", "60", "status"]).ok();
    eprintln!("answered after {:?}", began.elapsed());
    // Somebody was sent away for that.
    let ended = idle.into_iter().filter(|stream| {
        stream.set_nonblocking(true).expect("a setting");
        matches!((&*stream).read(&mut [0; 64]), Ok(0))
    });
    assert!(ended.count() > 0);
    daemon.stop();
}

#[test]
fn a_connection_is_kept_for_the_next_request_but_not_for_ever() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    let mut stream = connect(daemon.socket());
    for _ in 0..2 {
        stream
            .write_all(b"GET /v1/ready HTTP/1.1\r\nHost: h\r\n\r\n")
            .expect("it is kept");
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).expect("an answer");
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    }
    assert_eq!(rest(&mut stream), "");
    daemon.stop();
}

#[test]
fn half_a_request_is_not_waited_for_long() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    let mut head = connect(daemon.socket());
    head.write_all(b"GET /v1/ready HTTP/1.1\r\nHo").unwrap();
    let (status, error) = ask(
        daemon.socket(),
        b"POST /v1/volumes HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{",
    );
    assert_eq!(
        (status.as_str(), &error["code"]),
        ("400", &"bad_request".into())
    );
    assert!(error["why"].as_str().unwrap().contains("did not arrive"));
    rest(&mut head);
    daemon.stop();
}

#[test]
fn what_is_refused_is_refused_as_json() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path());
    let socket = daemon.socket();
    let long = format!("{{\"name\":\"{}\"}}", "x".repeat(1 << 20));
    for (body, status, code) in [
        (r#"["sneaky", 1048576, "auto"]"#, "400", "bad_request"),
        (r#"{"name":"a","naem":"b"}"#, "400", "bad_request"),
        (r#"{"name":"a","name":"b"}"#, "400", "bad_request"),
        ("", "400", "bad_request"),
        ("null", "400", "bad_request"),
        (&long, "413", "body_too_large"),
    ] {
        let (got, error) = ask(socket, &post(body));
        assert_eq!(
            (got.as_str(), &error["code"]),
            (status, &code.into()),
            "{error}"
        );
        assert_eq!(error["apiVersion"], "v1");
        assert!(
            error["error"].is_string() && error["next"].is_string(),
            "{error}"
        );
    }
    let list = daemon.ctl(&["volume", "list", "-o", "json"]).ok().json();
    assert_eq!(
        list["volumes"],
        Value::Array(Vec::new()),
        "nothing was made"
    );
    daemon.stop();
}

#[test]
fn a_client_that_hangs_up_ends_its_check() {
    if !requirement::mounts_work("a check that nobody waits for") {
        return;
    }
    let scratch = Scratch::new();
    // A tenth of a second for each inode: nobody waits for the end of that.
    let daemon = Launch::new(scratch.path())
        .variable("FAILPOINTS", "check-progress=sleep(100)")
        .start();
    daemon.create_volume("v");
    let mount = daemon.mount("v", &scratch.dir("mnt"));
    for n in 0..2000 {
        fs::write(mount.path().join(n.to_string()), "x").unwrap();
    }
    let mut client = connect(daemon.socket());
    client
        .write_all(b"POST /v1/volumes/v/check HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    let mut first = [0; 4096];
    let read = client.read(&mut first).expect("it is under way");
    let first = String::from_utf8_lossy(&first[..read]);
    assert!(first.contains("\"progress\""), "{first}");
    daemon
        .ctl(&["volume", "check", "v"])
        .refused(1, &["under way"]);
    // As ^C of hafsctl does.
    drop(client);
    let began = Instant::now();
    while !daemon
        .log()
        .contains("check stopped: nobody waits for it any more")
    {
        daemon.ctl(&["status"]).ok();
        assert!(began.elapsed() < PATIENCE, "the check goes on");
    }
    mount.unmount();
    daemon.stop();
}
