//! Bodies of requests: bounded in size and time, JSON objects, and refused as JSON.

use axum::extract::{FromRequest, Request};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::connection::BODY_WAIT;
use crate::control::{ApiError, ErrorCode};

/// Largest body; the longest that makes sense has some hundred bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The body of a request as a `T`. It is JSON, whatever its Content-Type says: `curl -d` is enough.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
        let body = timeout(BODY_WAIT, body).await.map_err(|_| {
            not_understood().why(format!(
                "it did not arrive within {} s",
                BODY_WAIT.as_secs()
            ))
        })?;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ApiError::new(ErrorCode::BodyTooLarge, "the body is too large")
                    .why(format!("a body has at most {BODY_BYTES_MAX} bytes"))
                    .next("docs/api.md shows the body that this path takes")
            } else {
                not_understood().why(error.to_string())
            }
        })?;
        parse(&body.to_bytes()).map(Self)
    }
}

fn not_understood() -> ApiError {
    ApiError::new(ErrorCode::BadRequest, "the body is not understood")
        .next("docs/api.md shows the body that this path takes")
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // A list would be taken for an object's fields in their order, which is no part of the API.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(not_understood().why("it is a list; an object is expected"));
    }
    serde_json::from_slice(body).map_err(|error| not_understood().why(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::CreateVolume;

    #[test]
    fn a_list_is_no_object() {
        let error = parse::<CreateVolume>(br#" ["x", 1048576, "auto"]"#).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.why.unwrap().contains("list"));
        parse::<CreateVolume>(br#" {"name":"x"}"#).unwrap();
    }
}
