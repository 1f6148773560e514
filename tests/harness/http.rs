//! One request to hafsd's HTTP, as plain as a client can be.

use std::io::{Read, Write};

/// The answer to `GET path`: its head and its body.
///
/// # Panics
/// If there is none.
pub fn get(mut stream: impl Read + Write, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("hafsd reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("hafsd answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.to_owned(), body.to_owned())
}
