//! Samples in, answers out.

use std::{
    net::TcpListener,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::to_bytes,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use candle_core::Device;
use layerwise::exit::{Client, Error as ExitError, Exited};
use layerwise_example_common::memory::status_mib;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, oneshot},
    time,
};

use crate::{
    prepare::{Prepare, Prepared},
    server::NO_EXITS,
};

/// Largest body, bytes.
pub(crate) const MAX_BODY: usize = 4 << 20;
/// Time that a client has to send its body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// What a client calls its request; the answer bears it too.
pub(crate) const REQUEST_ID: &str = "x-request-id";

#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

struct Shared {
    client: Client,
    prepare: Prepare,
    labels: Vec<String>,
    device: Device,
    /// Decoding takes memory and time: no more at once than there are cores.
    decoders: Arc<Semaphore>,
    counts: Counts,
    /// What the server was told to do.
    settings: Value,
}

/// What became of requests for an answer.
#[derive(Default)]
struct Counts {
    received: AtomicUsize,
    answered: AtomicUsize,
    refused: AtomicUsize,
    busy: AtomicUsize,
    failed: AtomicUsize,
    gone: AtomicUsize,
}

impl App {
    pub(crate) fn new(
        client: Client,
        prepare: Prepare,
        labels: Vec<String>,
        device: Device,
        settings: Value,
    ) -> Self {
        let decoders = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self(Arc::new(Shared {
            client,
            prepare,
            labels,
            device,
            decoders: Arc::new(Semaphore::new(decoders)),
            counts: Counts::default(),
            settings,
        }))
    }
}

/// Answers until `stop` or `ended`, then as long as connections need, at most `grace`.
pub(crate) fn run(
    app: App,
    listener: TcpListener,
    (stop, ended): (&'static AtomicBool, Arc<AtomicBool>),
    grace: Duration,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stopped = || {
        let ended = ended.clone();
        async move {
            while !stop.load(Ordering::Relaxed) && !ended.load(Ordering::Relaxed) {
                time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let done: Result<()> = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router =
            Router::new().route("/classify", post(classify)).route("/stats", get(stats)).with_state(app);
        let serving = axum::serve(listener, router).with_graceful_shutdown(stopped());
        let overdue = async {
            stopped().await;
            time::sleep(grace).await;
        };
        tokio::select! {
            done = serving => done.context("HTTP"),
            () = overdue => Ok(()),
        }
    });
    runtime.shutdown_timeout(grace);
    done
}

#[derive(Deserialize)]
struct Options {
    /// `off` for the full model.
    exits: Option<Switch>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Answer {
    #[serde(flatten)]
    pub(crate) says: Says,
    /// The layer after which the sample left.
    pub(crate) layer: usize,
    /// Said where a text was cut, as the model takes no more tokens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) truncated: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum Says {
    /// By a model with classes.
    Class { class: usize, label: String, probability: f64 },
    /// By a model of a number.
    Number { number: f64 },
}

impl Answer {
    /// The class, where there are classes.
    pub(crate) fn class(&self) -> Option<usize> {
        match self.says {
            Says::Class { class, .. } => Some(class),
            Says::Number { .. } => None,
        }
    }
}

/// Counts a request that went away before its answer was there.
struct Waiting<'a>(Option<&'a Counts>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(counts) = self.0 {
            counts.gone.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn classify(
    State(app): State<App>,
    options: Result<Query<Options>, QueryRejection>,
    request: Request,
) -> Response {
    let shared = &*app.0;
    shared.counts.received.fetch_add(1, Ordering::Relaxed);
    let mut waiting = Waiting(Some(&shared.counts));
    let id = request.headers().get(REQUEST_ID).cloned();
    let answer = match options {
        Ok(options) => answer(&app, options.exits, request).await,
        Err(rejection) => {
            Err(Failure::new(StatusCode::BAD_REQUEST, format!("{rejection}: expected exits=on or exits=off")))
        }
    };
    waiting.0 = None;
    let mut response = match answer {
        Ok(answer) => {
            shared.counts.answered.fetch_add(1, Ordering::Relaxed);
            Json(answer).into_response()
        }
        Err(failure) => failure.response(&shared.counts),
    };
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn answer(app: &App, exits: Option<Switch>, request: Request) -> Result<Answer, Failure> {
    let body = time::timeout(BODY_TIME, to_bytes(request.into_body(), MAX_BODY)).await;
    let body = body.map_err(|_| Failure::slow())?.map_err(|error| Failure::body(&error))?;
    let decoder = app.0.decoders.clone().acquire_owned().await;
    let decoder = decoder.map_err(|error| Failure::internal(error.to_string()))?;
    let prepared = app.clone();
    // Decoding goes on when its client goes away, and holds its place until it is done.
    let decoded = tokio::task::spawn_blocking(move || {
        let batch = prepared.0.prepare.sample(&body, &prepared.0.device);
        // On a GPU this thread's stream is not the one that hands the batch in.
        let there = prepared.0.device.synchronize();
        drop(decoder);
        there?;
        batch
    });
    let decoded = decoded.await.map_err(|_| Failure::internal("decoding panicked".into()))?;
    let Prepared { batch, truncated } =
        decoded.map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("{error:#}")))?;
    let keys = vec![if exits == Some(Switch::Off) { NO_EXITS } else { 0 }];
    let (sender, receiver) = oneshot::channel();
    // A client that goes away drops this future, and with it the ticket.
    let ticket = app.0.client.try_submit_with(batch, Some(keys), move |answer| drop(sender.send(answer)))?;
    let exited = receiver.await.map_err(|_| Failure::from(ExitError::Closed))??;
    drop(ticket);
    app.told(&exited, truncated)
}

impl App {
    fn told(&self, exited: &Exited, truncated: bool) -> Result<Answer, Failure> {
        let logits = exited.logits.flatten_all().and_then(|logits| logits.to_vec1::<f32>());
        let logits = logits.map_err(|error| Failure::internal(error.to_string()))?;
        let layer = exited.layer[0];
        if let [number] = logits[..] {
            return Ok(Answer { says: Says::Number { number: f64::from(number) }, layer, truncated });
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let class = logits.iter().position(|&x| x == largest).unwrap_or(0);
        let probability = 1. / logits.iter().map(|x| f64::from(x - largest).exp()).sum::<f64>();
        Ok(Answer {
            says: Says::Class { class, label: self.0.labels[class].clone(), probability },
            layer,
            truncated,
        })
    }
}

/// Why there is no answer.
struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    fn new(status: StatusCode, text: String) -> Self {
        Self { status, text }
    }

    fn slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, format!("no whole body within {} s", BODY_TIME.as_secs()))
    }

    /// Too long, or not what HTTP says, or the client went away.
    fn body(error: &axum::Error) -> Self {
        let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        if source.contains("length limit") {
            return Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("expected a body of at most {MAX_BODY} bytes"),
            );
        }
        Self::new(StatusCode::BAD_REQUEST, format!("no whole body: {error}"))
    }

    fn internal(text: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    fn response(self, counts: &Counts) -> Response {
        let count = match self.status {
            StatusCode::SERVICE_UNAVAILABLE => &counts.busy,
            StatusCode::INTERNAL_SERVER_ERROR => &counts.failed,
            _ => &counts.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let mut headers = HeaderMap::new();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        (self.status, headers, Json(json!({ "error": self.text }))).into_response()
    }
}

impl From<ExitError> for Failure {
    fn from(error: ExitError) -> Self {
        let status = match error {
            ExitError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// What became of the requests so far, and the memory of this process.
async fn stats(State(app): State<App>) -> Json<Value> {
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    let Counts { received, answered, refused, busy, failed, gone } = &app.0.counts;
    Json(
        json!({ "received": count(received), "answered": count(answered), "refused": count(refused), "busy": count(busy),
        "failed": count(failed), "gone": count(gone), "rss_mib": status_mib("VmRSS"), "settings": app.0.settings }),
    )
}
