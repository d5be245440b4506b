//! Depth pools behind a channel: many threads, wrong requests, clients that go away.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use candle_core::{Device::Cpu, Tensor, bail};
use layerwise_exit::{
    Client, CostTable, Error, PoolConfig, Pools, Result, ServeConfig, Served, Signal, Thresholds,
    leave_early, serve,
};
use layerwise_models::{Batch, Hidden, Pass, Tapped};
use layerwise_testkit::{Padded, TinyStack, assert_close, random};

const DEPTH: usize = 5;
const WIDTH: usize = 8;
const OTHER_BATCH: f64 = 1e-5;

/// A model that fails on, or panics at, rows of a certain size; and counts the rows of its blocks.
struct Fragile {
    model: TinyStack,
    rows: AtomicUsize,
}

impl Tapped for Fragile {
    fn depth(&self) -> usize {
        self.model.depth()
    }

    fn embed(&self, batch: &Batch, pass: Pass) -> candle_core::Result<Hidden> {
        if batch.inputs.dim(1)? != WIDTH {
            bail!("inputs of width {}", batch.inputs.dim(1)?)
        }
        self.model.embed(batch, pass)
    }

    fn block(&self, layer: usize, hidden: &Hidden, pass: Pass) -> candle_core::Result<Hidden> {
        self.rows.fetch_add(hidden.xs.dim(0)?, Ordering::Relaxed);
        let largest = hidden.xs.abs()?.max(1)?.to_vec1::<f32>()?;
        if layer == 2 && largest.iter().any(|x| (1e6..1e7).contains(x)) {
            bail!("too large")
        }
        assert!(!(layer == 3 && largest.iter().any(|x| (1e8..1e9).contains(x))), "much too large");
        self.model.block(layer, hidden, pass)
    }

    fn feature(&self, hidden: &Hidden) -> candle_core::Result<Tensor> {
        self.model.feature(hidden)
    }

    fn exit(&self, layer: usize, feature: &Tensor, pass: Pass) -> candle_core::Result<Tensor> {
        self.model.exit(layer, feature, pass)
    }
}

fn fragile() -> Result<Fragile> {
    Ok(Fragile { model: TinyStack::new(DEPTH, WIDTH, 4, 1)?, rows: AtomicUsize::new(0) })
}

fn policy() -> Thresholds {
    Thresholds::common(Signal::MaxProbability, 0.6, DEPTH)
}

/// Patience would leave with large numbers too, whatever the softmax makes of them; nobody does here.
fn last_layer_only() -> Thresholds {
    Thresholds::none()
}

fn sample(seed: u64, rows: usize) -> Batch {
    Batch::from((random(seed, &[rows, WIDTH]) * 1.2).expect("a scaled tensor"))
}

/// Runs a server, and `clients` on a thread of their own.
fn served<T: Send>(
    model: &(impl Tapped + Sync),
    policy: &Thresholds,
    config: ServeConfig,
    clients: impl FnOnce(Client) -> T + Send,
) -> Result<(Served, T)> {
    let (client, server) = serve(config)?;
    thread::scope(|scope| {
        let clients = scope.spawn(move || clients(client));
        let served = server.run(model, policy, &CostTable::default())?;
        Ok((served, clients.join().expect("the clients' asserts hold")))
    })
}

#[test]
fn answers_to_many_threads_are_those_of_the_engine() -> Result<()> {
    let (model, policy) = (fragile()?, policy());
    let (served, ()) = served(&model, &policy, ServeConfig::default(), |client| {
        thread::scope(|scope| {
            for thread in 0..8u64 {
                let (client, policy) = (client.clone(), &policy);
                scope.spawn(move || {
                    let alone = TinyStack::new(DEPTH, WIDTH, 4, 1).unwrap();
                    for request in 0..40 {
                        let batch = sample(1000 * thread + request, 1 + (request % 3) as usize);
                        let got = client.ask(batch.clone()).unwrap();
                        let want = leave_early(&alone, &batch, policy).unwrap();
                        assert_eq!(got.layer, want.layer);
                        assert_close(&got.logits, &want.logits, OTHER_BATCH).unwrap();
                    }
                });
            }
        });
    })?;
    assert_eq!((served.answered, served.failed, served.dropped), (320, 0, 0));
    let samples = 8 * (0..40).map(|request| 1 + request % 3).sum::<usize>();
    assert_eq!(served.work.histogram.iter().sum::<usize>(), samples);
    // No sample is computed beyond its exit.
    let run: usize = served.work.histogram.iter().enumerate().map(|(i, count)| (i + 1) * count).sum();
    assert_eq!(served.work.rows, run);
    Ok(())
}

#[test]
fn a_wrong_request_fails_alone() -> Result<()> {
    let (model, policy) = (fragile()?, last_layer_only());
    let config =
        ServeConfig { pools: PoolConfig { max_batch: 16, ..Default::default() }, ..Default::default() };
    // All handed in before the server starts, so that they share batches.
    let (client, server) = serve(config)?;
    let good: Vec<_> = (0..6).map(|seed| client.submit(sample(seed, 1))).collect::<Result<_>>()?;
    let scaled = |by: f64| Ok::<_, Error>(Batch::from((random(9, &[1, WIDTH]).sign()? * by)?));
    let fails = client.submit(scaled(2e6)?)?;
    let panics = client.submit(scaled(2e8)?)?;
    let nan = client.submit(scaled(f64::NAN)?)?;
    let wide = client.submit(Batch::from(random(1, &[1, WIDTH + 1])))?;
    let empty = client.submit(Batch::from(Tensor::zeros((0, WIDTH), candle_core::DType::F32, &Cpu)?))?;
    let (tell, keys) = std::sync::mpsc::channel();
    let ticket = client.try_submit_with(sample(3, 2), Some(vec![1]), move |answer| {
        tell.send(answer).expect("somebody listens");
        panic!("a client's mistake")
    })?;
    let more: Vec<_> = (6..12).map(|seed| client.submit(sample(seed, 2))).collect::<Result<_>>()?;
    drop(client);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let served = server.run(&model, &policy, &CostTable::default());
    std::panic::set_hook(hook);
    let served = served?;
    let alone = TinyStack::new(DEPTH, WIDTH, 4, 1)?;
    for (seed, pending) in good.into_iter().chain(more).enumerate() {
        let (seed, got) = (seed as u64, pending.wait()?);
        let batch = sample(seed, if seed < 6 { 1 } else { 2 });
        let want = leave_early(&alone, &batch, &policy)?;
        assert_eq!(got.layer, want.layer);
        assert_close(&got.logits, &want.logits, OTHER_BATCH)?;
    }
    let text = |pending: layerwise_exit::Pending| pending.wait().unwrap_err().to_string();
    assert!(text(fails).contains("too large"));
    assert!(text(wide).contains("inputs of width 9"));
    assert!(matches!(panics.wait(), Err(Error::Panicked(text)) if text == "much too large"));
    assert!(matches!(nan.wait(), Err(Error::NotFinite { layer: DEPTH, row: 0 })));
    assert!(matches!(empty.wait(), Err(Error::Empty)));
    assert!(matches!(keys.recv(), Ok(Err(Error::Keys { keys: 1, samples: 2 }))));
    drop(ticket);
    assert_eq!((served.answered, served.failed, served.dropped), (12, 6, 0));
    Ok(())
}

#[test]
fn what_nobody_waits_for_is_not_computed() -> Result<()> {
    let (model, policy) = (fragile()?, last_layer_only());
    let (client, server) = serve(ServeConfig::default())?;
    let wanted = client.submit(sample(1, 2))?;
    drop(client.submit(sample(2, 20))?);
    drop(client.submit(sample(3, 20))?);
    drop(client);
    // Known costs, so that their measurement does not count.
    let costs = CostTable::default();
    costs.prepare(&model, &sample(1, 1), 64)?;
    let before = model.rows.load(Ordering::Relaxed);
    let served = server.run(&model, &policy, &costs)?;
    assert_eq!(wanted.wait()?.layer, [DEPTH; 2]);
    assert_eq!((served.answered, served.dropped), (1, 2));
    assert_eq!(model.rows.load(Ordering::Relaxed) - before, 2 * DEPTH);
    Ok(())
}

#[test]
fn a_full_queue_makes_clients_wait_or_says_so() -> Result<()> {
    let (client, server) = serve(ServeConfig { queue: 2, ..Default::default() })?;
    let pending = [client.submit(sample(1, 1))?, client.submit(sample(2, 1))?];
    assert!(matches!(client.try_submit(sample(3, 1)), Err(Error::Busy)));
    let model = fragile()?;
    let through = AtomicBool::new(false);
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let client = client;
            let answer = client.ask(sample(3, 1));
            through.store(true, Ordering::Relaxed);
            answer
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!through.load(Ordering::Relaxed));
        server.run(&model, &policy(), &CostTable::default())?;
        waits.join().expect("no panic")?;
        Ok::<_, Error>(())
    })?;
    for pending in pending {
        pending.wait()?;
    }
    Ok(())
}

#[test]
fn the_server_ends_after_its_last_answer() -> Result<()> {
    let (client, server) = serve(ServeConfig::default())?;
    let pending: Vec<_> = (0..50).map(|seed| client.submit(sample(seed, 3))).collect::<Result<_>>()?;
    drop(client);
    let served = server.run(&fragile()?, &policy(), &CostTable::default())?;
    assert_eq!(served.answered, 50);
    for pending in pending {
        assert_eq!(pending.wait()?.layer.len(), 3);
    }

    let (client, server) = serve(ServeConfig::default())?;
    let pending = client.submit(sample(1, 1))?;
    let pending = pending.wait_for(Duration::from_millis(1))?.expect_err("nobody answers");
    drop(server);
    assert!(matches!(pending.wait(), Err(Error::Closed)));
    assert!(matches!(client.submit(sample(1, 1)), Err(Error::Closed)));
    assert!(matches!(client.try_submit(sample(1, 1)), Err(Error::Closed)));
    Ok(())
}

#[test]
fn rows_that_waited_long_go_first() -> Result<()> {
    let model = TinyStack::new(DEPTH, WIDTH, 4, 1)?;
    let (policy, costs) = (last_layer_only(), CostTable::default());
    let config = PoolConfig { max_batch: 4, max_wait: Duration::from_millis(20), ..Default::default() };
    let mut pools = Pools::new(&model, &policy, &costs, config)?;
    let submit = |pools: &mut Pools<'_, TinyStack>, rows: usize| {
        pools.submit_keyed(vec![(sample(1, rows), (0..rows as u64).collect())])
    };
    // A full batch after block 1, and one row that waits.
    let full = submit(&mut pools, 4);
    assert!(pools.step_at(0, 4));
    let single = submit(&mut pools, 1);
    thread::sleep(Duration::from_millis(25));
    // The batch has just moved on; the row has waited too long, and goes before it.
    assert!(pools.step_at(1, 4));
    assert_eq!(pools.waiting(), [(0, 1), (2, 4)]);
    assert!(pools.step());
    assert_eq!(pools.waiting(), [(1, 1), (2, 4)]);
    // Nobody waits too long: the full batch, which is deeper.
    assert!(pools.step());
    assert_eq!(pools.waiting(), [(1, 1), (3, 4)]);
    while pools.step() {}
    let finished: Vec<u64> = pools.finished().into_iter().map(|(number, _)| number).collect();
    assert_eq!(finished, [full, single].concat());
    assert_eq!(pools.work().histogram, [0, 0, 0, 0, 5]);

    // At one depth, whoever came first.
    let numbers = [submit(&mut pools, 1), submit(&mut pools, 1)].concat();
    for done in 0..DEPTH {
        assert!(pools.step_at(done, 1));
    }
    assert_eq!(pools.finished().into_iter().map(|(number, _)| number).collect::<Vec<_>>(), numbers[..1]);
    Ok(())
}

fn text(seed: u64, rows: usize, tokens: usize) -> Batch {
    let mask = (0..rows * tokens).map(|i| u8::from(i % tokens <= (i / tokens + seed as usize) % tokens));
    Batch {
        inputs: random(seed, &[rows, tokens, 4]),
        mask: Some(
            Tensor::from_iter(mask, &Cpu).and_then(|mask| mask.reshape((rows, tokens))).expect("a mask"),
        ),
        token_types: None,
    }
}

#[test]
fn masks_stay_with_their_rows_and_lengths_apart() -> Result<()> {
    let model = Padded { depth: 3, head: random(1, &[4, 3]) };
    let (policy, costs) = (Thresholds::common(Signal::MaxProbability, 0.9, 3), CostTable::default());
    let mut pools = Pools::new(&model, &policy, &costs, PoolConfig { max_batch: 5, ..Default::default() })?;
    let mut batches: Vec<Batch> = (0..12).map(|i| text(i, 1 + i as usize % 3, 3 + i as usize % 2)).collect();
    // More than a batch holds, and without a mask.
    batches.extend([text(20, 13, 4), Batch::from(random(21, &[2, 4, 4]))]);
    // Masks that do not belong to their inputs: refused alone.
    let wrong = [
        Batch { mask: text(1, 2, 4).mask, ..text(30, 1, 4) },
        Batch { token_types: text(1, 2, 4).mask, ..text(30, 1, 4) },
        Batch { mask: text(1, 1, 3).mask, ..text(30, 1, 4) },
    ];
    let keyed = |batch: &Batch| (batch.clone(), (0..batch.rows().unwrap() as u64).collect());
    let numbers = pools.submit_keyed(batches.iter().chain(&wrong).map(keyed).collect());
    while pools.step() {}
    let mut finished = pools.finished();
    finished.sort_by_key(|(number, _)| *number);
    assert_eq!(finished.iter().map(|(number, _)| *number).collect::<Vec<_>>(), numbers);
    for (batch, (_, got)) in batches.iter().zip(&finished) {
        let (got, want) = (got.as_ref().unwrap(), leave_early(&model, batch, &policy)?);
        assert_eq!(got.layer, want.layer);
        assert_close(&got.logits, &want.logits, OTHER_BATCH)?;
    }
    let layers: Vec<usize> =
        finished.iter().flat_map(|(_, got)| got.iter().flat_map(|got| got.layer.clone())).collect();
    assert!(layers.contains(&1) && layers.contains(&3), "{layers:?}");
    let errors: Vec<&Error> =
        finished[batches.len()..].iter().map(|(_, got)| got.as_ref().unwrap_err()).collect();
    assert!(matches!(errors[0], Error::Parts { part: "a mask", found: 2, rows: 1 }), "{:?}", errors[0]);
    assert!(matches!(errors[1], Error::Parts { part: "token types", found: 2, rows: 1 }), "{:?}", errors[1]);
    assert!(matches!(errors[2], Error::Candle(_)), "{:?}", errors[2]);
    Ok(())
}

#[test]
fn settings_out_of_range_are_refused() -> Result<()> {
    let config = ServeConfig::default();
    let pools = |pools: PoolConfig| ServeConfig { pools, ..config };
    for (field, config) in [
        ("queue", ServeConfig { queue: 0, ..config }),
        ("rows", ServeConfig { rows: 0, ..config }),
        ("max_batch", pools(PoolConfig { max_batch: 0, ..config.pools })),
        ("profitable", pools(PoolConfig { profitable: 0.9, ..config.pools })),
        ("profitable", pools(PoolConfig { profitable: f64::NAN, ..config.pools })),
    ] {
        assert!(
            matches!(serve(config), Err(Error::Setting { field: named, .. }) if named == field),
            "{field}"
        );
    }
    let (_client, server) = serve(config)?;
    let wrong = Thresholds::common(Signal::MaxProbability, 0.5, DEPTH + 3);
    assert!(matches!(server.run(&fragile()?, &wrong, &CostTable::default()), Err(Error::Layer { .. })));
    Ok(())
}
