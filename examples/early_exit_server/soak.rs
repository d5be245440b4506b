//! A long time with everything that can go wrong on the other side.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::Args;
use layerwise::ops::init;
use layerwise_example_common::{
    CommonFlags, Preset, Report, Results, Table,
    plots::{self, Series},
    progress,
    table::decimals,
};
use rand::Rng;
use serde_json::{Value, json};

use crate::{
    NAME,
    clients::{AskedFlags, Connection, seconds},
    http::{Answer, MAX_BODY},
    load::quantile,
    requests::{Request, requests},
};

#[derive(Args)]
pub(crate) struct SoakFlags {
    #[command(flatten)]
    pub(crate) common: CommonFlags,
    #[command(flatten)]
    asked: AskedFlags,
    /// Clients at a time.
    #[arg(long, default_value = "32")]
    clients: NonZeroUsize,
    /// How long [default: 600; with --preset smoke 5].
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
}

/// What a client does, and how often of a hundred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    /// Asks, and waits for the answer.
    Good,
    /// Sends bytes that are neither an image nor a text.
    Garbage,
    /// Sends half an image file, or a text that ends within a character.
    Half,
    /// Sends more than is allowed.
    TooLarge,
    /// Asks and goes away.
    Dropped,
    /// Announces a body, sends half of it, and goes away.
    HalfSent,
    /// Sends its sample in small pieces, and reads its answer byte by byte.
    Slow,
}

/// Seconds within which a server that is asked all the time has answered somebody.
const SHORTEST_WINDOW_S: f64 = 5.;

const OFTEN: [(Doing, u32); 7] = [
    (Doing::Good, 80),
    (Doing::Garbage, 4),
    (Doing::Half, 4),
    (Doing::TooLarge, 1),
    (Doing::Dropped, 5),
    (Doing::HalfSent, 3),
    (Doing::Slow, 3),
];

#[derive(Default)]
struct Seen {
    done: HashMap<Doing, usize>,
    /// Of good requests: when they were answered, in seconds from the start, and how long they took, in milliseconds.
    latencies: Vec<(f64, f64)>,
    /// Requests that clients know to be answered, and those that the server was too busy for.
    answered: usize,
    busy: usize,
    /// What must not be: each in words.
    wrong: Vec<String>,
    /// The first answer to each sample, with and without exits.
    answers: HashMap<(usize, bool), (Option<usize>, usize)>,
    /// Later answers that left after another layer: a certainty within rounding of the threshold.
    other_layer: usize,
}

/// Once a second.
struct Sample {
    at: f64,
    rss_mib: f64,
}

pub(crate) fn soak(flags: &SoakFlags, device: &Device) -> Result<()> {
    let requests = requests(flags.asked.data.as_deref(), 500)?;
    let connection = Connection::new(flags.asked.address);
    let mut before = connection.stats()?;
    let out = flags.common.out_folder(&format!("{NAME}/soak"))?;
    let default = if flags.common.preset == Preset::Smoke { 5. } else { 600. };
    let length = Duration::from_secs_f64(flags.seconds.unwrap_or(default));
    let settings = json!({ "command": "soak", "server": before["settings"].take(), "preset": flags.common.preset, "data": flags.asked.data, "samples": requests.len(), "clients": flags.clients,
        "seconds": length.as_secs_f64(), "of_a_hundred": OFTEN.map(|(doing, share)| json!([format!("{doing:?}"), share])) });
    let mut results = Results::new(NAME, settings, flags.common.seed, device);

    let (seen, number, over) = (Mutex::new(Seen::default()), AtomicUsize::new(0), AtomicBool::new(false));
    let start = Instant::now();
    let mut samples = Vec::new();
    thread::scope(|scope| -> Result<()> {
        for client in 0..flags.clients.get() {
            let (seen, number, over, requests) = (&seen, &number, &over, &requests);
            let seed = flags.common.seed.wrapping_add(client as u64);
            scope.spawn(move || one_client(flags.asked.address, requests, seed, (start, over, number), seen));
        }
        // The clients end, whatever happens to this.
        let watched = watch(&connection, start, length, &mut samples);
        over.store(true, Ordering::Relaxed);
        watched
    })?;
    // Clients that went away may still be on their way out.
    let mut after = connection.stats()?;
    for _ in 0..100 {
        if known(&after) == counter(&after, "received") {
            break;
        }
        thread::sleep(Duration::from_millis(100));
        after = connection.stats()?;
    }
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    show(&out, &mut results, (seen, &samples), (&before, &after))
}

fn watch(connection: &Connection, start: Instant, length: Duration, samples: &mut Vec<Sample>) -> Result<()> {
    while start.elapsed() < length {
        thread::sleep(Duration::from_secs(1).min(length.saturating_sub(start.elapsed())));
        let stats = connection.stats()?;
        let rss_mib = stats["rss_mib"].as_f64().unwrap_or(f64::NAN);
        samples.push(Sample { at: start.elapsed().as_secs_f64(), rss_mib });
    }
    Ok(())
}

fn one_client(
    address: SocketAddr,
    samples: &[Request],
    seed: u64,
    (start, over, number): (Instant, &AtomicBool, &AtomicUsize),
    seen: &Mutex<Seen>,
) {
    let mut rng = init::rng(seed);
    let connection = Connection::new(address);
    while !over.load(Ordering::Relaxed) {
        let total: u32 = OFTEN.iter().map(|(_, share)| share).sum();
        let mut draw = rng.random_range(0..total);
        let drawn = OFTEN.iter().find(|(_, share)| {
            let here = draw < *share;
            draw = draw.saturating_sub(*share);
            here
        });
        let doing = drawn.map_or(Doing::Good, |(doing, _)| *doing);
        let sample = rng.random_range(0..samples.len());
        let exits = rng.random_bool(0.8);
        let id = number.fetch_add(1, Ordering::Relaxed);
        let asked = Instant::now();
        let outcome = act(doing, address, &connection, (exits, id), &samples[sample]);
        let took = 1e3 * asked.elapsed().as_secs_f64();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen.done.entry(doing).or_default() += 1;
        match outcome {
            Ok(Told::Nothing) => {}
            Ok(Told::Busy) => seen.busy += 1,
            Ok(Told::Answer(answer)) => {
                seen.answered += 1;
                if doing == Doing::Good {
                    seen.latencies.push((start.elapsed().as_secs_f64(), took));
                }
                let now = (answer.class(), answer.layer);
                let first = *seen.answers.entry((sample, exits)).or_insert(now);
                // After another layer the answer may be another one.
                seen.other_layer += usize::from(first.1 != now.1);
                if first.1 == now.1 && first.0 != now.0 {
                    let layer = now.1;
                    let text = format!(
                        "sample {sample}, layer {layer}: class {:?} once and {:?} now",
                        first.0, now.0
                    );
                    seen.wrong.push(text);
                }
            }
            Err(error) => seen.wrong.push(format!("{doing:?}, request {id}: {error:#}")),
        }
    }
}

enum Told {
    Answer(Answer),
    Busy,
    /// Nothing was to be told.
    Nothing,
}

fn act(
    doing: Doing,
    address: SocketAddr,
    connection: &Connection,
    (exits, id): (bool, usize),
    request: &Request,
) -> Result<Told> {
    let expect = |body: &[u8], status: u16| -> Result<Told> {
        let said = connection.send(body, exits, &id.to_string())?;
        ensure!(said.id == Some(id.to_string()), "the answer is of request {:?}", said.id);
        match said.status {
            // What is no sample does not come as far as the queue.
            503 if status == 200 => Ok(Told::Busy),
            got if got != status => anyhow::bail!("status {got} instead of {status}: {}", said.body),
            200 => Ok(Told::Answer(serde_json::from_str(&said.body)?)),
            _ => Ok(Told::Nothing),
        }
    };
    let body = request.body.as_slice();
    match doing {
        Doing::Good => expect(body, 200),
        // No image and no UTF-8.
        Doing::Garbage => expect(&[format!("request {id}").as_bytes(), b"\xff"].concat(), 400),
        Doing::Half => expect(&request.half, 400),
        Doing::TooLarge => match expect(&vec![0; MAX_BODY + 1], 413) {
            // The server may close the connection before it has read everything.
            Err(error) if matches!(error.downcast_ref(), Some(ureq::Error::Io(_))) => Ok(Told::Nothing),
            told => told,
        },
        Doing::Dropped => {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(&raw(body, body.len(), exits, id))?;
            Ok(Told::Nothing)
        }
        Doing::HalfSent => {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(&raw(&body[..body.len() / 2], body.len(), exits, id))?;
            Ok(Told::Nothing)
        }
        Doing::Slow => slow(address, &raw(body, body.len(), exits, id), id),
    }
}

/// A request as it goes over the wire.
fn raw(body: &[u8], announced: usize, exits: bool, id: usize) -> Vec<u8> {
    let exits = if exits { "on" } else { "off" };
    let head = format!(
        "POST /classify?exits={exits} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-request-id: {id}\r\ncontent-length: {announced}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn slow(address: SocketAddr, request: &[u8], id: usize) -> Result<Told> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    for piece in request.chunks(request.len().div_ceil(10)) {
        stream.write_all(piece)?;
        thread::sleep(Duration::from_millis(100));
    }
    let mut said = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        said.push(byte[0]);
        thread::sleep(Duration::from_millis(2));
    }
    let said = String::from_utf8(said)?;
    let (head, body) = said.split_once("\r\n\r\n").context("a head and a body")?;
    let named = head.to_lowercase().lines().any(|line| line == format!("x-request-id: {id}"));
    ensure!(named, "the answer is of another request: {head}");
    if head.starts_with("HTTP/1.1 503") {
        return Ok(Told::Busy);
    }
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(Told::Answer(serde_json::from_str(body)?))
}

/// Requests for an answer whose end the server knows.
const ENDS: [&str; 5] = ["answered", "refused", "busy", "failed", "gone"];

fn counter(stats: &Value, key: &str) -> u64 {
    stats[key].as_u64().unwrap_or(0)
}

fn known(stats: &Value) -> u64 {
    ENDS.iter().map(|key| counter(stats, key)).sum()
}

/// What the counts of clients and server, side by side, say is wrong.
fn compare(seen: &Seen, count: &dyn Fn(&str) -> u64) -> Vec<String> {
    let done = |doing| seen.done.get(&doing).copied().unwrap_or(0) as u64;
    let (answered, busy) = (seen.answered as u64, seen.busy as u64);
    // A client that goes away may have its answer, or be turned away, before the server notices.
    let unseen = done(Doing::Dropped);
    let mut wrong = Vec::new();
    let mut check = |right: bool, text: String| {
        if !right {
            wrong.push(text);
        }
    };
    let ends: u64 = ENDS.iter().map(|key| count(key)).sum();
    check(
        ends == count("received"),
        format!("of {} requests the server knows what became of {ends}", count("received")),
    );
    check(count("failed") == 0, format!("{} requests failed inside the server", count("failed")));
    let both = |mine: u64, key: &str| (mine..=mine + unseen).contains(&count(key));
    check(
        both(answered, "answered"),
        format!("the server answered {}, its clients got {answered}", count("answered")),
    );
    check(
        both(busy, "busy"),
        format!("the server was busy {} times, its clients were told {busy}", count("busy")),
    );
    check(2 * busy <= answered, format!("{answered} answers, and {busy} times busy"));
    wrong
}

fn show(
    out: &std::path::Path,
    results: &mut Results,
    (seen, samples): (Seen, &[Sample]),
    (before, after): (&Value, &Value),
) -> Result<()> {
    let count = |key: &str| counter(after, key).saturating_sub(counter(before, key));
    let keys = ["received"].iter().chain(&ENDS);
    let server: serde_json::Map<String, Value> =
        keys.map(|key| ((*key).to_owned(), json!(count(key)))).collect();
    let compared = compare(&seen, &count);
    let mut wrong = seen.wrong;
    wrong.extend(compared);
    let all: Vec<f64> = seen.latencies.iter().map(|(_, ms)| *ms).collect();
    ensure!(!all.is_empty(), "no request was answered: {wrong:?}");
    let last = samples.last().map_or(0., |sample| sample.at);
    // Twenty windows, or as many of a length that no hiccup of a busy machine has.
    let windows = (last / SHORTEST_WINDOW_S).floor().clamp(1., 20.);
    let window = last / windows;
    let mut p99 = Vec::new();
    for i in 0..windows as u32 {
        let (from, to) = (f64::from(i) * window, f64::from(i + 1) * window);
        let within: Vec<f64> =
            seen.latencies.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, ms)| *ms).collect();
        if within.is_empty() {
            wrong.push(format!("no good request was answered between {from:.0} and {to:.0} s"));
        } else {
            p99.push((from + window / 2., quantile(&within, 0.99)?));
        }
    }
    // After a tenth of the time everything is in place.
    let warm: Vec<f64> = samples
        .iter()
        .filter(|sample| sample.at >= last / 10. && sample.rss_mib.is_finite())
        .map(|sample| sample.rss_mib)
        .collect();
    let (early, late) = warm.split_at(warm.len() / 2);
    let memory = [early, late].map(|part| if part.is_empty() { Ok(f64::NAN) } else { quantile(part, 0.5) });
    let [early, late] = memory;
    let (early, late) = (early?, late?);
    if late > 1.1 * early + 20. {
        wrong.push(format!("memory grew from {early:.0} to {late:.0} MiB, medians of the two halves"));
    }
    let mut table = Table::new(["", ""]);
    let mut done: Vec<(String, usize)> =
        seen.done.iter().map(|(doing, count)| (format!("{doing:?}"), *count)).collect();
    done.sort();
    for (doing, count) in &done {
        table.row([format!("requests: {doing}"), count.to_string()]);
    }
    for (key, value) in &server {
        table.row([format!("server: {key}"), value.to_string()]);
    }
    let quantiles = [0.5, 0.95, 0.99, 1.].map(|level| quantile(&all, level));
    let [p50, p95, p99_all, most] = quantiles;
    let (p50, p95, p99_all, most) = (p50?, p95?, p99_all?, most?);
    for (name, value) in [("p50, ms", p50), ("p95, ms", p95), ("p99, ms", p99_all), ("longest, ms", most)] {
        table.row([name.to_owned(), decimals(value, 1)]);
    }
    table.row(["memory, first and second half, MiB".to_owned(), format!("{early:.1}, {late:.1}")]);
    table.row(["answers that left after another layer than before".to_owned(), seen.other_layer.to_string()]);
    table.row(["wrong".to_owned(), wrong.len().to_string()]);
    let told = format!(
        "{last:.0} s: {} good requests answered, {} wrong, p99 {p99_all:.1} ms, memory {early:.1} then {late:.1} MiB.",
        all.len(),
        wrong.len()
    );
    progress::print(&format!("\n{told}\n{table}\n"));
    let more = &mut results.more;
    more.insert("requests".into(), json!(done.into_iter().collect::<std::collections::BTreeMap<_, _>>()));
    more.insert("server".into(), server.into());
    more.insert(
        "latency_ms".into(),
        json!({ "p50": p50, "p95": p95, "p99": p99_all, "longest": most, "p99_over_time": p99 }),
    );
    let rss: Vec<(f64, f64)> = samples.iter().map(|sample| (sample.at, sample.rss_mib)).collect();
    more.insert("memory_mib".into(), json!({ "first_half": early, "second_half": late, "over_time": rss }));
    more.insert("other_layer".into(), json!(seen.other_layer));
    more.insert("wrong".into(), json!(wrong));
    let series = |name: &str, points: &[(f64, f64)]| vec![Series::new(name, points.iter().copied())];
    let zoomed = |points: &[(f64, f64)]| Some((0., points.iter().map(|(_, y)| *y).fold(1., f64::max)));
    let panels = vec![
        plots::curves(
            "p99 of good requests",
            ("seconds", None),
            ("milliseconds", zoomed(&p99)),
            &series("the server", &p99),
        ),
        plots::curves(
            "Memory of the server",
            ("seconds", None),
            ("MiB", zoomed(&rss)),
            &series("the server", &rss),
        ),
    ];
    let figure = plots::write(&out.join("soak"), panels, 2)?;
    Report::new("A server under everything that can go wrong")
        .paragraph(&told)
        .figure(
            &figure,
            "The 99th percentile of good requests in twenty windows, and resident memory, once a second.",
        )
        .table(&table, "What clients did, what the server counted, and how long good requests took.")
        .close(results, out)?;
    ensure!(wrong.is_empty(), "{} things went wrong, the first: {}", wrong.len(), wrong[0]);
    Ok(())
}
