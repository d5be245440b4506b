//! Connections that ask one sample after the other.

use std::{net::SocketAddr, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;
use ureq::Agent;

use crate::http::{Answer, REQUEST_ID};

/// Whom clients ask, and what.
#[derive(Args)]
pub(crate) struct AskedFlags {
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:8765")]
    pub(crate) address: SocketAddr,
    /// Folder of a labelled data set of the model's classes: CIFAR-10's or MNIST's files, or, for a BERT, a folder of GLUE with the name of its
    /// task [default: the embedded digits].
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

/// A number of seconds, for a flag.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    if seconds > 0. && seconds < 1e6 {
        Ok(seconds)
    } else {
        Err("expected a positive number of seconds".into())
    }
}

/// Longest that a client waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that is kept.
pub(crate) struct Connection {
    agent: Agent,
    url: String,
}

/// What a server said.
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) id: Option<String>,
    pub(crate) body: String,
}

impl Connection {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let config =
            Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build();
        Self { agent: config.into(), url: format!("http://{address}") }
    }

    /// Sends a body to `/classify`.
    pub(crate) fn send(&self, body: &[u8], exits: bool, id: &str) -> Result<Said> {
        let url = format!("{}/classify?exits={}", self.url, if exits { "on" } else { "off" });
        let mut response = self.agent.post(url).header(REQUEST_ID, id).send(body)?;
        let id = response.headers().get(REQUEST_ID).and_then(|id| Some(id.to_str().ok()?.to_owned()));
        Ok(Said { status: response.status().as_u16(), id, body: response.body_mut().read_to_string()? })
    }

    /// Sends a sample and expects its answer; where the server is busy, again a little later.
    pub(crate) fn ask(&self, body: &[u8], exits: bool) -> Result<Answer> {
        loop {
            let said = self.send(body, exits, "0")?;
            if said.status == 503 {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            ensure!(said.status == 200, "{}: status {}: {}", self.url, said.status, said.body);
            return serde_json::from_str(&said.body).with_context(|| format!("{}: {}", self.url, said.body));
        }
    }

    /// `/stats`.
    pub(crate) fn stats(&self) -> Result<Value> {
        let url = format!("{}/stats", self.url);
        let mut response = self.agent.get(&url).call().with_context(|| format!("{url}: no server there?"))?;
        Ok(serde_json::from_str(&response.body_mut().read_to_string()?)?)
    }
}
