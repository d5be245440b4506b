use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::Duration,
};

use candle_core::Tensor;
use layerwise_models::{Batch, Tapped};

use crate::{
    CostTable, Error, Exited, Policy, Result,
    pools::{PoolConfig, Pools, Work},
};

/// How requests are taken in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServeConfig {
    /// How they are run.
    pub pools: PoolConfig,
    /// Requests that may wait to be taken in; 256. A client that submits one more waits: back-pressure.
    pub queue: usize,
    /// No more requests are taken in while so many rows are on their way; 256.
    pub rows: usize,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self { pools: PoolConfig::default(), queue: 256, rows: 256 }
    }
}

/// Gets the answer of one request, on the server's thread.
type Reply = Box<dyn FnOnce(Result<Exited>) + Send>;

struct Question {
    batch: Batch,
    keys: Option<Vec<u64>>,
    reply: Reply,
    cancelled: Arc<AtomicBool>,
}

/// Where requests are handed in; clones go to other threads. When the last one is dropped, the server finishes what it has and ends.
#[derive(Clone)]
pub struct Client {
    queue: SyncSender<Question>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// A request on its way. Whoever drops it does not want the answer any more: its samples are not computed further.
#[derive(Debug)]
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
}

/// An answer to come, and its [`Ticket`].
#[derive(Debug)]
pub struct Pending {
    reply: Receiver<Result<Exited>>,
    _ticket: Ticket,
}

/// The other end of the clients' channel.
#[derive(Debug)]
pub struct Server {
    queue: Receiver<Question>,
    config: ServeConfig,
}

/// What a server did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that ended in an error, which their client got.
    pub failed: usize,
    /// Requests that nobody waited for any more when they were done.
    pub dropped: usize,
    /// Batches and rows, and where samples left.
    pub work: Work,
}

/// A channel between clients on any threads and a server that runs [`Pools`] on its own.
///
/// # Errors
///
/// [`Error::Setting`] for a setting out of range.
///
/// # Example
///
/// ```
/// use candle_core::Device::Cpu;
/// use layerwise_exit::{CostTable, Signal, Thresholds, serve};
/// use layerwise_models::{Batch, Mlp, MlpConfig};
/// use layerwise_ops::init;
///
/// let config = MlpConfig { inputs: 6, width: 8, layers: 4, classes: 3, ..Default::default() };
/// let model = Mlp::new(config, &mut init::rng(0), &Cpu)?.frozen();
/// let policy = Thresholds::common(Signal::MaxProbability, 0.5, 4);
/// let (client, server) = serve(Default::default())?;
/// let served = std::thread::scope(|scope| {
///     scope.spawn(move || {
///         let image = init::normal(&mut init::rng(1), (1, 6), 1., &Cpu)?;
///         let exited = client.ask(Batch::from(image))?;
///         assert_eq!(exited.layer.len(), 1);
///         Ok::<_, layerwise_exit::Error>(())
///     });
///     server.run(&model, &policy, &CostTable::default())
/// })?;
/// assert_eq!((served.answered, served.failed), (1, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn serve(config: ServeConfig) -> Result<(Client, Server)> {
    config.pools.validate()?;
    for (field, value) in [("queue", config.queue), ("rows", config.rows)] {
        if value == 0 {
            return Err(Error::Setting { field, value: "0".into(), expected: "at least 1" });
        }
    }
    let (sender, queue) = sync_channel(config.queue);
    Ok((Client { queue: sender }, Server { queue, config }))
}

impl Client {
    /// Hands a request in; waits while the queue is full. Its samples' keys are those that come next on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when the server is no more.
    pub fn submit(&self, batch: Batch) -> Result<Pending> {
        let (question, pending) = question(batch)?;
        self.queue.send(question).map_err(|_| Error::Closed)?;
        Ok(pending)
    }

    /// Hands a request in unless the queue is full.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when it is, [`Error::Closed`] when the server is no more.
    pub fn try_submit(&self, batch: Batch) -> Result<Pending> {
        let (question, pending) = question(batch)?;
        self.try_send(question)?;
        Ok(pending)
    }

    /// Hands a request in unless the queue is full, under keys of the caller's (one a sample; `None` for those that come next), and
    /// has its answer given to `reply` on the server's thread: for callers that must not block, such as asynchronous ones. `reply` must
    /// not block either.
    ///
    /// # Errors
    ///
    /// As [`try_submit`](Self::try_submit).
    pub fn try_submit_with(
        &self,
        batch: Batch,
        keys: Option<Vec<u64>>,
        reply: impl FnOnce(Result<Exited>) + Send + 'static,
    ) -> Result<Ticket> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let ticket = Ticket { cancelled: cancelled.clone() };
        settled(&batch.inputs)?;
        self.try_send(Question { batch, keys, reply: Box::new(reply), cancelled })?;
        Ok(ticket)
    }

    fn try_send(&self, question: Question) -> Result<()> {
        self.queue.try_send(question).map_err(|error| match error {
            TrySendError::Full(_) => Error::Busy,
            TrySendError::Disconnected(_) => Error::Closed,
        })
    }

    /// Hands a request in and waits for its answer.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit) and [`Pending::wait`].
    pub fn ask(&self, batch: Batch) -> Result<Exited> {
        self.submit(batch)?.wait()
    }
}

/// On a GPU every thread has a stream of its own: what one has made is to be there before another reads it.
fn settled(xs: &Tensor) -> Result<()> {
    Ok(xs.device().synchronize()?)
}

fn question(batch: Batch) -> Result<(Question, Pending)> {
    settled(&batch.inputs)?;
    // Room for the one answer: the server never waits for a client, nor minds one that is gone.
    let (answer, reply) = sync_channel(1);
    let cancelled = Arc::new(AtomicBool::new(false));
    let pending = Pending { reply, _ticket: Ticket { cancelled: cancelled.clone() } };
    let reply = Box::new(move |exited| drop(answer.send(exited)));
    Ok((Question { batch, keys: None, reply, cancelled }, pending))
}

impl Pending {
    /// Waits for the answer.
    ///
    /// # Errors
    ///
    /// What was wrong with this request; [`Error::Closed`] when there is no server to answer it: it never ran, or its thread panicked.
    pub fn wait(self) -> Result<Exited> {
        self.reply.recv().unwrap_or(Err(Error::Closed))
    }

    /// Waits for so long; the request itself when there is no answer yet.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_for(self, most: Duration) -> Result<Result<Exited, Self>> {
        match self.reply.recv_timeout(most) {
            Ok(answer) => answer.map(Ok),
            Err(RecvTimeoutError::Timeout) => Ok(Err(self)),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Closed),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Server {
    /// Answers until the last client is gone and everything it was asked is done.
    ///
    /// Runs on the thread that calls it: one of rayon's pool is best ([`rayon::scope`](https://docs.rs/rayon)), as long as none of those that
    /// ask is of that pool; they would wait for a thread that waits for them. A request that is wrong, or that makes the model fail or panic, gets its error and
    /// disturbs no other. On a GPU the model has to be there when another thread than this one has loaded it: see candle's `Device::synchronize`. The first batch waits for the measurement of costs, unless they are known: see [`CostTable::prepare`].
    ///
    /// # Errors
    ///
    /// What [`Policy::validate`] finds.
    pub fn run<M: Tapped + ?Sized>(
        self,
        model: &M,
        policy: &dyn Policy,
        costs: &CostTable,
    ) -> Result<Served> {
        let Self { queue, config } = self;
        let mut pools = Pools::new(model, policy, costs, config.pools)?;
        let mut replies: HashMap<u64, (Reply, Arc<AtomicBool>)> = HashMap::new();
        let mut served = Served::default();
        let mut open = true;
        let mut next_key = 0;
        loop {
            let mut questions = Vec::new();
            let mut rows = pools.rows();
            while open && rows < config.rows {
                let question = match queue.try_recv() {
                    // Nothing else to do: wait for somebody.
                    Err(TryRecvError::Empty) if rows == 0 => queue.recv().ok(),
                    Err(TryRecvError::Empty) => break,
                    question => question.ok(),
                };
                match question {
                    Some(question) => {
                        rows += question.batch.rows().unwrap_or(0).max(1);
                        questions.push(question);
                    }
                    None => open = false,
                }
            }
            let (batches, senders): (Vec<_>, Vec<_>) = questions
                .into_iter()
                .map(|Question { batch, keys, reply, cancelled }| {
                    let rows = batch.rows().unwrap_or(0) as u64;
                    let keys = keys.unwrap_or_else(|| (next_key..next_key + rows).collect());
                    next_key += rows;
                    ((batch, keys, cancelled.clone()), (reply, cancelled))
                })
                .unzip();
            replies.extend(pools.submit_droppable(batches).into_iter().zip(senders));
            let more = pools.step();
            for (request, answer) in pools.finished() {
                let Some((reply, cancelled)) = replies.remove(&request) else { continue };
                let answer = answer.and_then(|exited| settled(&exited.logits).map(|()| exited));
                match &answer {
                    _ if cancelled.load(Ordering::Relaxed) => served.dropped += 1,
                    Ok(_) => served.answered += 1,
                    Err(_) => served.failed += 1,
                }
                // A client's mistake is not the server's.
                let _ = catch_unwind(AssertUnwindSafe(|| reply(answer)));
            }
            if !more && !open {
                served.work = pools.work().clone();
                return Ok(served);
            }
        }
    }
}
