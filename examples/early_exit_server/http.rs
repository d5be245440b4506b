//! Images in, answers out.

use std::{
    io::Cursor,
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
    body::{Bytes, to_bytes},
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use candle_core::Device;
use image::{ImageReader, Limits, RgbImage};
use layerwise::{
    data::Preprocess,
    exit::{Client, Error as ExitError, Exited},
    models::{Batch, VitConfig},
};
use layerwise_example_common::{input::prepared, memory::status_mib};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, oneshot},
    time,
};

use crate::server::NO_EXITS;

/// Largest body, bytes.
pub(crate) const MAX_BODY: usize = 4 << 20;
/// Largest edge of an image, and most memory while it is decoded, bytes.
const MAX_EDGE: u32 = 4096;
const MAX_DECODED: u64 = 96 << 20;
/// Time that a client has to send its body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// What a client calls its request; the answer bears it too.
pub(crate) const REQUEST_ID: &str = "x-request-id";

#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

struct Shared {
    client: Client,
    preprocess: Preprocess,
    labels: Vec<String>,
    /// Channels and edge of the model's images.
    channels: usize,
    size: usize,
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
    /// # Errors
    ///
    /// When what `preprocess` makes of an image is not what the model takes.
    pub(crate) fn new(
        client: Client,
        preprocess: Preprocess,
        config: &VitConfig,
        device: Device,
        settings: Value,
    ) -> Result<Self> {
        let labels = (0..config.num_labels).map(|class| config.label(class)).collect();
        let decoders = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let app = Self(Arc::new(Shared {
            client,
            preprocess,
            labels,
            channels: config.num_channels,
            size: config.image_size,
            device,
            decoders: Arc::new(Semaphore::new(decoders)),
            counts: Counts::default(),
            settings,
        }));
        // Now, and not at the first request.
        app.pixels(&RgbImage::new(97, 89)).map_err(|failure| anyhow::anyhow!(failure.text))?;
        Ok(app)
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
    pub(crate) class: usize,
    pub(crate) label: String,
    pub(crate) probability: f64,
    /// The layer after which the image left.
    pub(crate) layer: usize,
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
        let batch = prepared.prepare(&body);
        drop(decoder);
        batch
    });
    let batch = decoded.await;
    let batch = batch.map_err(|_| Failure::internal("decoding panicked".into()))??;
    let keys = vec![if exits == Some(Switch::Off) { NO_EXITS } else { 0 }];
    let (sender, receiver) = oneshot::channel();
    // A client that goes away drops this future, and with it the ticket.
    let ticket = app.0.client.try_submit_with(batch, Some(keys), move |answer| drop(sender.send(answer)))?;
    let exited = receiver.await.map_err(|_| Failure::from(ExitError::Closed))??;
    drop(ticket);
    app.told(&exited)
}

impl App {
    /// The image of a body, as the model takes it.
    fn prepare(&self, body: &Bytes) -> Result<Batch, Failure> {
        let mut reader = ImageReader::new(Cursor::new(body)).with_guessed_format().map_err(Failure::image)?;
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_EDGE);
        limits.max_image_height = Some(MAX_EDGE);
        limits.max_alloc = Some(MAX_DECODED);
        reader.limits(limits);
        self.pixels(&reader.decode().map_err(Failure::image)?.into_rgb8())
    }

    /// As data sets are prepared: an image that has the model's size already is not resampled.
    fn pixels(&self, image: &RgbImage) -> Result<Batch, Failure> {
        let Shared { preprocess, channels, size, device, .. } = &*self.0;
        let pixels = prepared(image, preprocess, *size, device).and_then(|pixels| Ok(pixels.unsqueeze(0)?));
        let pixels = pixels.map_err(Failure::image)?;
        if pixels.dims() != [1, *channels, *size, *size] {
            let made = &pixels.dims()[1..];
            return Err(Failure::internal(format!(
                "preprocessor_config.json makes {made:?} of an image, the model takes {:?}",
                [channels, size, size]
            )));
        }
        Ok(pixels.into())
    }

    fn told(&self, exited: &Exited) -> Result<Answer, Failure> {
        let logits = exited.logits.flatten_all().and_then(|logits| logits.to_vec1::<f32>());
        let logits = logits.map_err(|error| Failure::internal(error.to_string()))?;
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let class = logits.iter().position(|&x| x == largest).unwrap_or(0);
        let probability = 1. / logits.iter().map(|x| f64::from(x - largest).exp()).sum::<f64>();
        Ok(Answer { class, label: self.0.labels[class].clone(), probability, layer: exited.layer[0] })
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

    fn image(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("expected a PNG or JPEG image in the body: {error}"))
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
