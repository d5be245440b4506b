//! Weights and graphs that several threads use at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use candle_core::{Result, Tensor, Var};
use layerwise_ops::{Activation, Affine, FeedForward, Norm, NormPlace, backward, feed_forward};
use layerwise_testkit::{assert_close, random};
use rayon::ThreadPoolBuilder;

fn inputs(rows: usize, width: usize, inner: usize) -> Result<Vec<Tensor>> {
    let weight = |seed, outputs, inputs| random(seed, &[outputs, inputs]) * 0.1;
    Ok(vec![
        random(1, &[rows, width]),
        random(2, &[width]),
        random(3, &[width]),
        weight(4, inner, width)?,
        random(5, &[inner]),
        weight(6, width, inner)?,
        random(7, &[width]),
    ])
}

fn run(x: &[Tensor]) -> Result<Tensor> {
    let config = FeedForward {
        norm: Norm { weight: &x[1], bias: &x[2], eps: 1e-5, place: NormPlace::Before },
        up: Affine { weight: &x[3], bias: Some(&x[4]), packed: None },
        down: Affine { weight: &x[5], bias: Some(&x[6]), packed: None },
        activation: Activation::Gelu,
        dropout: None,
    };
    feed_forward(&x[0], &config)
}

fn variables(inputs: &[Tensor]) -> Result<(Vec<Var>, Vec<Tensor>)> {
    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tensors = vars.iter().map(|var| var.as_tensor().clone()).collect();
    Ok((vars, tensors))
}

/// Clients outside of a pool of two threads that each run `job` in it so often; fails rather than hangs.
///
/// A thread of the pool that waits for a part of one job picks up the next one meanwhile.
fn clients(
    count: usize,
    times: usize,
    job: impl Fn(usize) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let pool = Arc::new(ThreadPoolBuilder::new().num_threads(2).build().map_err(candle_core::Error::wrap)?);
    let (job, (done, finished)) = (Arc::new(job), mpsc::channel());
    for client in 0..count {
        let (pool, job, done) = (pool.clone(), job.clone(), done.clone());
        thread::spawn(move || {
            let result = (0..times).try_for_each(|_| pool.install(|| job(client)));
            done.send(result).ok();
        });
    }
    // Seconds, if nothing hangs.
    (0..count).try_for_each(|_| finished.recv_timeout(Duration::from_secs(120)).expect("no deadlock"))
}

/// A model answers while its weights are set: no thread waits for a lock that it holds itself.
#[test]
fn answers_go_on_while_weights_are_written() -> Result<()> {
    let values = inputs(400, 64, 256)?;
    let (vars, x) = variables(&values)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = thread::spawn(move || -> Result<()> {
        while !stopped.load(Ordering::Relaxed) {
            for (var, value) in vars.iter().zip(&values).skip(1) {
                var.set(value)?;
                thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(())
    });
    let x: Vec<Tensor> = x.iter().map(Tensor::detach).collect();
    let answered = clients(4, 400, move |_| run(&x).map(|_| ()));
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("a writer")?;
    answered
}

/// Two losses on one trunk, each walked back by a thread of its own.
#[test]
fn one_graph_is_walked_by_two_threads() -> Result<()> {
    let (vars, x) = variables(&inputs(8, 128, 512)?)?;
    let ys = run(&x)?;
    let losses = [ys.sum_all()?, (ys.sqr()?.sum_all()? * 10.)?];
    for ours in [false, true] {
        let walk = |loss: &Tensor| if ours { backward(loss) } else { loss.backward() };
        let want = [walk(&losses[0])?, walk(&losses[1])?];
        for _ in 0..100 {
            let [a, b] = &losses;
            let got = thread::scope(|scope| {
                let first = scope.spawn(|| walk(a));
                let second = walk(b);
                [first.join().expect("a walk"), second]
            });
            for (got, want) in got.into_iter().zip(&want) {
                let got = got?;
                for var in &vars {
                    let (got, want) = (got.get(var).expect("a gradient"), want.get(var).expect("a gradient"));
                    assert_close(got, want, 1e-6)?;
                }
            }
        }
    }
    Ok(())
}

/// While `backward` waits in rayon, its thread may run a job that calls candle's.
#[test]
fn gradients_stay_with_their_walk() -> Result<()> {
    let models = (0..4).map(|_| variables(&inputs(400, 64, 256)?)).collect::<Result<Vec<_>>>()?;
    let wrong = Arc::new(AtomicUsize::new(0));
    let count = wrong.clone();
    clients(4, 150, move |client| {
        let (vars, x) = &models[client];
        let loss = run(x)?.sum_all()?;
        let got = if client % 2 == 0 { backward(&loss)? } else { loss.backward()? };
        let lost = vars.iter().any(|var| got.get(var).is_none());
        count.fetch_add(usize::from(lost || got.get_ids().count() != vars.len()), Ordering::Relaxed);
        Ok(())
    })?;
    assert_eq!(wrong.load(Ordering::Relaxed), 0, "of 600 walks lost gradients or got another model's");
    Ok(())
}
