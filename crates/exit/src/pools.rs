use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use candle_core::Tensor;
use layerwise_models::{Batch, Hidden, Pass, Tapped};

use crate::{
    CostTable, Error, Exited, Policy, Result,
    cost_table::Shape,
    engine::{Leaving, See, Seen, not_finite},
};

/// How pools choose what runs next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolConfig {
    /// Most rows of a batch; 64.
    pub max_batch: usize,
    /// A depth whose rows, in one batch, cost at most so many times what they would in a full one is run before all shallower ones; 1.1.
    pub profitable: f64,
    /// Rows that have waited so long at their depth go before everything else; 50 ms. Nobody waits while there is nothing else
    /// to do.
    pub max_wait: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { max_batch: 64, profitable: 1.1, max_wait: Duration::from_millis(50) }
    }
}

impl PoolConfig {
    /// # Errors
    ///
    /// [`Error::Setting`] for batches of 0 rows and a factor below 1.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.max_batch == 0 {
            return Err(Error::Setting { field: "max_batch", value: "0".into(), expected: "at least 1" });
        }
        if !(self.profitable >= 1. && self.profitable.is_finite()) {
            let value = self.profitable.to_string();
            return Err(Error::Setting {
                field: "profitable",
                value,
                expected: "a finite number, at least 1",
            });
        }
        Ok(())
    }
}

/// Depth pools: samples of different requests wait at the depth they have reached, and go on together in full batches.
///
/// For models whose samples do not see each other, so for encoders, this is exact: each sample leaves where it would leave alone, with
/// the same logits but for rounding. This is the scheduler without threads; [`serve`](crate::serve) runs it behind a channel.
///
/// What runs next: the depth of the row that has waited longest, if that is longer than `max_wait`; else the deepest with a profitable
/// batch; else the one with most rows.
pub struct Pools<'a, M: ?Sized> {
    model: &'a M,
    policy: &'a dyn Policy,
    costs: &'a CostTable,
    config: PoolConfig,
    requests: HashMap<u64, Request>,
    next_request: u64,
    /// By blocks done; of each, one for each shape of state.
    depths: BTreeMap<usize, Vec<Pool>>,
    finished: Vec<(u64, Result<Exited>)>,
    work: Work,
    profitable_rows: Option<usize>,
}

impl<M: ?Sized> std::fmt::Debug for Pools<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pools")
            .field("config", &self.config)
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

/// What pools have done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Batches that were run through a block.
    pub batches: usize,
    /// Rows in them.
    pub rows: usize,
    /// Samples that left after layer `1..=L`.
    pub histogram: Vec<usize>,
}

/// Most rows that costs are measured for: time a row hardly changes beyond.
const MEASURED: usize = 256;

/// Samples of one request that have not all left.
struct Request {
    answers: Vec<Option<(Tensor, usize)>>,
    missing: usize,
    cancelled: Arc<AtomicBool>,
}

/// Some rows of a request that are not embedded yet.
struct Asked {
    request: u64,
    /// The first of its rows.
    first: usize,
    batch: Batch,
    keys: Vec<u64>,
}

/// A sample on its way.
#[derive(Clone)]
struct Sample {
    request: u64,
    row: usize,
    key: u64,
    since: Instant,
}

/// Samples that wait at one depth, in states of one shape.
struct Pool {
    shape: Shape,
    parts: VecDeque<Part>,
}

/// Rows of a state that wait; others of it may have gone on.
struct Part {
    hidden: Hidden,
    memory: Option<Tensor>,
    waiting: Vec<(u32, Sample)>,
}

impl Pool {
    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.waiting.len()).sum()
    }

    fn oldest(&self) -> Option<Instant> {
        self.parts.iter().flat_map(|part| &part.waiting).map(|(_, sample)| sample.since).min()
    }
}

/// A place in the pools: blocks done, and which of the shapes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    done: usize,
    pool: usize,
}

/// Rows in one batch.
struct Gathered {
    hidden: Hidden,
    memory: Option<Tensor>,
    samples: Vec<Sample>,
}

/// What a block made of a batch.
struct After {
    /// Of the rows that stay, in their order.
    hidden: Hidden,
    memory: Option<Tensor>,
    /// Rows that leave, with their logits.
    leaving: Vec<(usize, Tensor)>,
}

impl<'a, M: Tapped + ?Sized> Pools<'a, M> {
    /// Empty pools. `costs` tells how large a batch has to be to be profitable.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a setting out of range, and what [`Policy::validate`] finds.
    pub fn new(
        model: &'a M,
        policy: &'a dyn Policy,
        costs: &'a CostTable,
        config: PoolConfig,
    ) -> Result<Self> {
        config.validate()?;
        policy.validate(model.depth())?;
        let work = Work { histogram: vec![0; model.depth()], ..Default::default() };
        Ok(Self {
            model,
            policy,
            costs,
            config,
            requests: HashMap::new(),
            next_request: 0,
            depths: BTreeMap::new(),
            finished: Vec::new(),
            work,
            profitable_rows: None,
        })
    }

    /// Takes requests in: each a batch of one sample or more, and the keys of its samples. Returns their numbers; what becomes of them
    /// comes out of [`finished`](Self::finished), a wrong one's error too.
    pub fn submit_keyed(&mut self, requests: Vec<(Batch, Vec<u64>)>) -> Vec<u64> {
        self.submit_droppable(
            requests.into_iter().map(|(batch, keys)| (batch, keys, Arc::default())).collect(),
        )
    }

    /// As [`submit_keyed`](Self::submit_keyed), with flags that say when nobody waits for the answer any more.
    pub(crate) fn submit_droppable(&mut self, batches: Vec<(Batch, Vec<u64>, Arc<AtomicBool>)>) -> Vec<u64> {
        let mut numbers = Vec::with_capacity(batches.len());
        let mut good: Vec<Asked> = Vec::with_capacity(batches.len());
        for (batch, keys, cancelled) in batches {
            let number = self.next_request;
            self.next_request += 1;
            numbers.push(number);
            if cancelled.load(Ordering::Relaxed) {
                self.finished.push((number, Err(Error::Dropped)));
                continue;
            }
            // No more at once than a batch holds.
            match checked(&batch, keys.len()).and_then(|()| Ok(batch.split(self.config.max_batch)?)) {
                Ok(parts) => {
                    let request = Request { answers: vec![None; keys.len()], missing: keys.len(), cancelled };
                    self.requests.insert(number, request);
                    let mut first = 0;
                    for (part, keys) in parts.into_iter().zip(keys.chunks(self.config.max_batch)) {
                        good.push(Asked { request: number, first, batch: part, keys: keys.to_vec() });
                        first += keys.len();
                    }
                }
                Err(error) => self.finished.push((number, Err(error))),
            }
        }
        // Those that look alike are embedded together, as far as a batch goes.
        let mut rest: VecDeque<Asked> = good.into();
        while let Some(first) = rest.pop_front() {
            let mut rows = first.keys.len();
            let mut group = vec![first];
            while let Some(next) = rest.pop_front_if(|next| {
                rows + next.keys.len() <= self.config.max_batch && alike(&group[0].batch, &next.batch)
            }) {
                rows += next.keys.len();
                group.push(next);
            }
            self.embed(group);
        }
        numbers
    }

    /// Embeds parts of requests together; where that fails, one by one, so that a wrong one fails alone.
    fn embed(&mut self, mut group: Vec<Asked>) {
        let embedded = caught(|| {
            let batch = join_batches(group.iter().map(|asked| &asked.batch))?;
            let hidden = self.model.embed(&batch, Pass::EVAL)?.detach();
            let rows = batch.rows()?;
            let state = [Some(&hidden.xs), hidden.mask.as_ref()];
            same_rows(state.into_iter().flatten().map(|xs| ("a state", xs)), rows)?;
            Ok(hidden)
        });
        match embedded {
            Ok(hidden) => {
                let since = Instant::now();
                let samples = group.iter().flat_map(|Asked { request, first, keys, .. }| {
                    let sample =
                        move |(row, &key)| Sample { request: *request, row: first + row, key, since };
                    keys.iter().enumerate().map(sample)
                });
                let samples = samples.collect();
                self.wait(0, hidden, None, samples);
            }
            Err(error) if group.len() == 1 => self.fail(group[0].request, error),
            Err(_) => group.drain(..).for_each(|asked| self.embed(vec![asked])),
        }
    }

    fn fail(&mut self, request: u64, error: Error) {
        if self.requests.remove(&request).is_some() {
            self.finished.push((request, Err(error)));
        }
    }

    /// Lets all rows of a state wait after `done` blocks.
    fn wait(&mut self, done: usize, hidden: Hidden, memory: Option<Tensor>, samples: Vec<Sample>) {
        if samples.is_empty() {
            return;
        }
        let waiting = samples.into_iter().enumerate().map(|(row, sample)| (row as u32, sample)).collect();
        let part = Part { hidden, memory, waiting };
        let shape = Shape::of(&part.hidden);
        let pools = self.depths.entry(done).or_default();
        match pools.iter_mut().find(|pool| pool.shape == shape) {
            Some(pool) => pool.parts.push_back(part),
            None => pools.push(Pool { shape, parts: [part].into() }),
        }
    }

    /// Rows that wait, by blocks done.
    #[must_use]
    pub fn waiting(&self) -> Vec<(usize, usize)> {
        let rows = |pools: &Vec<Pool>| pools.iter().map(Pool::rows).sum();
        self.depths.iter().map(|(&done, pools)| (done, rows(pools))).filter(|(_, rows)| *rows > 0).collect()
    }

    /// All rows that wait.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.waiting().iter().map(|(_, rows)| rows).sum()
    }

    /// What has been done so far.
    #[must_use]
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Requests that are done since the last call, with their answers or what went wrong.
    pub fn finished(&mut self) -> Vec<(u64, Result<Exited>)> {
        std::mem::take(&mut self.finished)
    }

    /// Runs one block on the batch that is best run next; `false` when nobody waits.
    pub fn step(&mut self) -> bool {
        let Some(place) = self.choose(Instant::now()) else { return false };
        self.run(place, self.config.max_batch);
        true
    }

    /// Runs the next block on up to `rows` of those that have `done` blocks behind them, whatever would be best; `false` where nobody
    /// waits.
    pub fn step_at(&mut self, done: usize, rows: usize) -> bool {
        let pools = self.depths.get(&done).map_or(&[][..], Vec::as_slice);
        let Some(pool) = pools.iter().position(|pool| pool.rows() > 0) else { return false };
        self.run(Place { done, pool }, rows.max(1));
        true
    }

    fn choose(&mut self, now: Instant) -> Option<Place> {
        let profitable_rows = self.profitable_rows();
        let places = || {
            self.depths.iter().rev().flat_map(|(&done, pools)| {
                let place = move |(pool, waiting): (usize, &'_ Pool)| (Place { done, pool }, waiting.rows());
                pools.iter().enumerate().map(place).filter(|(_, rows)| *rows > 0)
            })
        };
        let pool = |place: &Place| &self.depths[&place.done][place.pool];
        let overdue = |place: &Place| {
            pool(place).oldest().is_some_and(|since| now.duration_since(since) > self.config.max_wait)
        };
        let profitable = |(_, rows): &(Place, usize)| *rows >= profitable_rows;
        let late = places().filter(|(place, _)| overdue(place)).min_by_key(|(place, _)| pool(place).oldest());
        let next = late.or_else(|| places().find(profitable));
        // Of equals the first, which is the deepest.
        let most = || places().reduce(|best, other| if other.1 > best.1 { other } else { best });
        next.or_else(most).map(|(place, _)| place)
    }

    /// Measured once, on the first state that waits: states of another shape cost more or less, but hardly in another proportion.
    fn profitable_rows(&mut self) -> usize {
        if let Some(rows) = self.profitable_rows {
            return rows;
        }
        let full = self.config.max_batch;
        let waiting = self.depths.values().flatten().flat_map(|pool| &pool.parts).next();
        let Some(part) = waiting else { return full };
        // Where costs cannot be measured, the model will say why when it is run.
        let costs = caught(|| self.costs.of_state(self.model, &part.hidden, full.min(MEASURED)));
        let rows = costs.map(|costs| costs.profitable_rows(full, self.config.profitable));
        self.profitable_rows = rows.as_ref().ok().copied();
        rows.unwrap_or(full)
    }

    fn run(&mut self, place: Place, most: usize) {
        let (parts, samples) = self.gather(place, most);
        if samples.is_empty() {
            return;
        }
        let layer = place.done + 1;
        match caught(|| join(self.model, &parts)) {
            Ok((hidden, memory)) => self.run_gathered(layer, Gathered { hidden, memory, samples }),
            // Parts of one shape cannot but fit together, unless memory is short: then one by one.
            Err(_) => {
                let mut rest = samples.into_iter();
                for part in parts {
                    let samples: Vec<Sample> = rest.by_ref().take(part.2.len()).collect();
                    match caught(|| join(self.model, std::slice::from_ref(&part))) {
                        Ok((hidden, memory)) => {
                            self.run_gathered(layer, Gathered { hidden, memory, samples })
                        }
                        Err(error) => {
                            let text = error.to_string();
                            for sample in samples {
                                self.fail(sample.request, candle_core::Error::Msg(text.clone()).into());
                            }
                        }
                    }
                }
            }
        }
    }

    /// Takes out the rows that have waited longest, at most so many; those of requests that are no more are dropped.
    fn gather(&mut self, place: Place, most: usize) -> (Vec<Rows>, Vec<Sample>) {
        let Some(pools) = self.depths.get_mut(&place.done) else { return Default::default() };
        let Some(pool) = pools.get_mut(place.pool) else { return Default::default() };
        let mut parts = Vec::new();
        let mut samples = Vec::new();
        while samples.len() < most
            && let Some(part) = pool.parts.front_mut()
        {
            let waiting = std::mem::take(&mut part.waiting).into_iter();
            let mut alive = waiting.filter(|(_, sample)| {
                let request = self.requests.get(&sample.request);
                request.is_some_and(|request| !request.cancelled.load(Ordering::Relaxed))
            });
            let taken: Vec<(u32, Sample)> = alive.by_ref().take(most - samples.len()).collect();
            part.waiting = alive.collect();
            let rows: Vec<u32> = taken.iter().map(|(row, _)| *row).collect();
            samples.extend(taken.into_iter().map(|(_, sample)| sample));
            if !rows.is_empty() {
                parts.push((part.hidden.clone(), part.memory.clone(), rows));
            }
            if part.waiting.is_empty() {
                pool.parts.pop_front();
            }
        }
        pools.retain(|pool| !pool.parts.is_empty());
        let gone = self.requests.extract_if(|_, request| request.cancelled.load(Ordering::Relaxed));
        self.finished.extend(gone.map(|(number, _)| (number, Err(Error::Dropped))));
        (parts, samples)
    }

    /// Runs block `layer`. Where that fails, once more for each request, so that a wrong one fails alone.
    fn run_gathered(&mut self, layer: usize, gathered: Gathered) {
        self.work.batches += 1;
        self.work.rows += gathered.samples.len();
        match caught(|| self.block(layer, &gathered)) {
            Ok(after) => self.sort_out(layer, after, gathered.samples),
            Err(error) => {
                let first = gathered.samples[0].request;
                if gathered.samples.iter().all(|sample| sample.request == first) {
                    return self.fail(first, error);
                }
                let mut requests: Vec<u64> = gathered.samples.iter().map(|sample| sample.request).collect();
                requests.sort_unstable();
                requests.dedup();
                for request in requests {
                    let rows: Vec<u32> = (0..gathered.samples.len() as u32)
                        .filter(|&row| gathered.samples[row as usize].request == request)
                        .collect();
                    let samples = rows.iter().map(|&row| gathered.samples[row as usize].clone()).collect();
                    let part = (gathered.hidden.clone(), gathered.memory.clone(), rows);
                    match caught(|| join(self.model, &[part])) {
                        Ok((hidden, memory)) => {
                            self.run_gathered(layer, Gathered { hidden, memory, samples })
                        }
                        Err(error) => self.fail(request, error),
                    }
                }
            }
        }
    }

    /// One block, and what the policy makes of it.
    fn block(&self, layer: usize, gathered: &Gathered) -> Result<After> {
        let keys: Vec<u64> = gathered.samples.iter().map(|sample| sample.key).collect();
        let hidden = self.model.block(layer, &gathered.hidden, Pass::EVAL)?.detach();
        let see = See { layer, keys: &keys, memory: gathered.memory.as_ref() };
        let Some(Seen { leaves, feature, logits, memory }) = see.look(self.model, self.policy, &hidden)?
        else {
            return Ok(After { hidden, memory: gathered.memory.clone(), leaving: Vec::new() });
        };
        let (gone, kept): (Vec<usize>, Vec<usize>) = (0..keys.len()).partition(|&row| leaves[row]);
        if gone.is_empty() {
            return Ok(After { hidden, memory, leaving: Vec::new() });
        }
        let logits = Leaving { layer, feature: feature.as_ref(), logits: logits.as_ref(), rows: &gone }
            .answer(self.model)?;
        let gone = gone.into_iter().enumerate();
        // A copy, as whoever keeps an answer would keep those of its whole batch.
        let answer = |(at, row)| Ok((row, logits.narrow(0, at, 1)?.force_contiguous()?));
        let leaving = gone.map(answer).collect::<Result<_>>()?;
        if kept.is_empty() {
            return Ok(After { hidden, memory, leaving });
        }
        // At once, so that a row that waits does not keep the memory of a whole batch.
        let kept = kept.into_iter().map(|row| row as u32).collect();
        let (hidden, memory) = join(self.model, &[(hidden, memory, kept)])?;
        Ok(After { hidden, memory, leaving })
    }

    /// Answers those who leave and lets the others wait for the next block.
    fn sort_out(&mut self, layer: usize, after: After, samples: Vec<Sample>) {
        let mut samples: Vec<Option<Sample>> = samples.into_iter().map(Some).collect();
        for (row, logits) in after.leaving {
            if let Some(sample) = samples[row].take() {
                self.answer(sample, layer, logits);
            }
        }
        let since = Instant::now();
        let stay = samples.into_iter().flatten().map(|sample| Sample { since, ..sample });
        self.wait(layer, after.hidden, after.memory, stay.collect());
    }

    fn answer(&mut self, sample: Sample, layer: usize, logits: Tensor) {
        match not_finite(&logits) {
            Ok(None) => {}
            Ok(Some(_)) => return self.fail(sample.request, Error::NotFinite { layer, row: sample.row }),
            Err(error) => return self.fail(sample.request, error),
        }
        self.work.histogram[layer - 1] += 1;
        let Some(request) = self.requests.get_mut(&sample.request) else { return };
        request.answers[sample.row] = Some((logits, layer));
        request.missing -= 1;
        if request.missing > 0 {
            return;
        }
        if let Some(request) = self.requests.remove(&sample.request) {
            let (logits, layer): (Vec<Tensor>, Vec<usize>) = request.answers.into_iter().flatten().unzip();
            let logits = Tensor::cat(&logits, 0);
            let exited = logits.map(|logits| Exited { logits, layer }).map_err(Error::from);
            self.finished.push((sample.request, exited));
        }
    }
}

/// Runs `f`; a panic in the model becomes an error.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Error::Panicked(text.unwrap_or("no message").to_owned()))
    })
}

/// Rows, keys, mask and token types of a request must belong together.
fn checked(batch: &Batch, keys: usize) -> Result<()> {
    let rows = batch.rows()?;
    if rows == 0 {
        return Err(Error::Empty);
    }
    if keys != rows {
        return Err(Error::Keys { keys, samples: rows });
    }
    let parts = [("a mask", &batch.mask), ("token types", &batch.token_types)];
    same_rows(parts.into_iter().filter_map(|(part, xs)| Some((part, xs.as_ref()?))), rows)
}

fn same_rows<'t>(parts: impl Iterator<Item = (&'static str, &'t Tensor)>, rows: usize) -> Result<()> {
    for (part, xs) in parts {
        let found = xs.dim(0)?;
        if found != rows {
            return Err(Error::Parts { part, found, rows });
        }
    }
    Ok(())
}

/// Whether two batches can be one.
fn alike(a: &Batch, b: &Batch) -> bool {
    let same = |a: &Tensor, b: &Tensor| {
        a.dims().get(1..) == b.dims().get(1..) && a.dtype() == b.dtype() && a.device().same_device(b.device())
    };
    let both = |a: &Option<Tensor>, b: &Option<Tensor>| match (a, b) {
        (Some(a), Some(b)) => same(a, b),
        (None, None) => true,
        _ => false,
    };
    same(&a.inputs, &b.inputs) && both(&a.mask, &b.mask) && both(&a.token_types, &b.token_types)
}

fn join_batches<'b>(batches: impl Iterator<Item = &'b Batch>) -> Result<Batch> {
    let batches: Vec<&Batch> = batches.collect();
    if let [one] = batches.as_slice() {
        return Ok((*one).clone());
    }
    let all = |part: fn(&Batch) -> Option<&Tensor>| {
        let parts: Vec<&Tensor> = batches.iter().filter_map(|batch| part(batch)).collect();
        if parts.is_empty() { Ok(None) } else { Tensor::cat(&parts, 0).map(Some) }
    };
    let inputs = Tensor::cat(&batches.iter().map(|batch| &batch.inputs).collect::<Vec<_>>(), 0)?;
    Ok(Batch {
        inputs,
        mask: all(|batch| batch.mask.as_ref())?,
        token_types: all(|batch| batch.token_types.as_ref())?,
    })
}

/// Rows of states, and what is remembered of them.
type Rows = (Hidden, Option<Tensor>, Vec<u32>);

/// These rows in one batch; a part that is wanted as it is, is not copied.
fn join<M: Tapped + ?Sized>(model: &M, parts: &[Rows]) -> Result<(Hidden, Option<Tensor>)> {
    let mut states = Vec::with_capacity(parts.len());
    let mut memories = Vec::new();
    for (hidden, memory, rows) in parts {
        let whole = rows.len() == hidden.xs.dim(0)? && rows.is_sorted();
        if whole {
            states.push(hidden.clone());
            memories.extend(memory.clone());
            continue;
        }
        let rows = Tensor::new(rows.as_slice(), hidden.xs.device())?;
        states.push(model.select(hidden, &rows)?);
        if let Some(memory) = memory {
            memories.push(memory.index_select(&rows, 0)?);
        }
    }
    if !memories.is_empty() && memories.len() != states.len() {
        return Err(candle_core::Error::Msg("a policy remembered some batches and not others".into()).into());
    }
    let memory = joined(memories)?;
    let mask = joined(states.iter().filter_map(|state| state.mask.clone()).collect())?;
    match states.as_slice() {
        [one] => Ok((one.clone(), memory)),
        _ => {
            let xs = Tensor::cat(&states.iter().map(|state| &state.xs).collect::<Vec<_>>(), 0)?;
            Ok((Hidden { xs, mask }, memory))
        }
    }
}

fn joined(mut parts: Vec<Tensor>) -> Result<Option<Tensor>> {
    Ok(match parts.len() {
        0 => None,
        1 => parts.pop(),
        _ => Some(Tensor::cat(&parts, 0)?),
    })
}
