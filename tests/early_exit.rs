//! Calibration and serving at their smallest: what they write, and that a server keeps what calibration has chosen.

mod running;

use std::{
    fs,
    io::{Cursor, Read, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use layerwise::exit::{Calibration, SavedExits};
use serde_json::Value;
use tempfile::TempDir;

use running::{Server, example, fails_with, numbers, run, succeed, text};

type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

const DEPTH: usize = 12;

/// The quickstart's aligned model, trained for seconds.
fn model() -> PathBuf {
    static OUT: OnceLock<TempDir> = OnceLock::new();
    let out = OUT.get_or_init(|| {
        let out = tempfile::tempdir().expect("a folder");
        succeed(&run("quickstart", &["--preset", "smoke"], out.path()));
        out
    });
    out.path().join("aligned")
}

/// A copy of its folder.
fn copied(to: &Path) -> Done<PathBuf> {
    let folder = to.join("model");
    fs::create_dir_all(&folder)?;
    for file in fs::read_dir(model())? {
        let file = file?;
        fs::copy(file.path(), folder.join(file.file_name()))?;
    }
    Ok(folder)
}

fn results(out: &Path) -> Done<Value> {
    Ok(serde_json::from_slice(&fs::read(out.join("results.json"))?)?)
}

fn figures(out: &Path, names: &[&str]) -> Done {
    for name in names {
        assert!(fs::read(out.join(name).with_extension("png"))?.starts_with(b"\x89PNG"), "{name}");
        let svg = fs::read_to_string(out.join(name).with_extension("svg"))?;
        assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{name}");
    }
    assert_eq!(fs::read_to_string(out.join("report.html"))?.matches("<figure>").count(), names.len());
    Ok(())
}

#[test]
fn what_calibration_saves_is_what_a_server_keeps() -> Done {
    let folder = tempfile::tempdir()?;
    let (model, out) = (copied(folder.path())?, folder.path().join("calibrate"));
    let common = ["--preset", "smoke", "--model", text(&model)];
    // Too few calibration samples to promise a point.
    let too_few = run("calibrate", &common, &out);
    fails_with(&too_few, 1, &["144 calibration samples", "needs at least 299"]);
    let no_exits =
        Command::new(example("early_exit_server")).args(["serve", "--model", text(&model)]).output()?;
    fails_with(&no_exits, 1, &["--threshold", "calibrate --save", "layerwise.json"]);

    let promise =
        ["--tolerance", "5", "--delta", "0.1", "--signal", "margin", "--layers", "2,4,6,8", "--save"];
    succeed(&run("calibrate", &[&common[..], &promise].concat(), &out));
    figures(&out, &["signals", "promises"])?;
    let results = results(&out)?;
    let saved = SavedExits::load(&model, DEPTH)?;
    assert!(saved.thresholds.at.keys().all(|layer| [2, 4, 6, 8].contains(layer)), "{saved:?}");
    let Calibration::Guarantee { promise, layers, samples } = saved.calibration else {
        return Err("a promise".into());
    };
    assert_eq!((promise.tolerance, promise.delta, samples), (0.05, 0.1, 144));
    assert_eq!(results["chosen"]["calibration_layers"], layers);
    assert_eq!(results["chosen"]["thresholds"], serde_json::to_value(&saved.thresholds)?);
    // No exits, and every signal, under the same promise.
    let signals = results["signals"].as_array().ok_or("signals")?;
    assert_eq!((signals.len(), &signals[0]["layers"]), (7, &12.0.into()));
    let tried = results["splits"].as_array().ok_or("splits")?;
    // Of 20 draws, more than 8 broken at a rate of 0.1 are seen once in 500,000 times.
    assert!(tried.iter().all(|tried| tried["broken"].as_u64() <= Some(8)), "{tried:?}");
    assert!(
        !tried.is_empty() && tried.iter().all(|tried| tried["tolerance"] == 0.02 && tried["splits"] == 20),
        "{tried:?}"
    );

    // Other tests and signals, without a mention of the model's folder.
    let other = [
        "--tolerance",
        "5",
        "--hoeffding-bentkus",
        "--signal",
        "gate",
        "--risk",
        "disagreement",
        "--splits",
        "2",
    ];
    succeed(&run("calibrate", &[&common[..], &other].concat(), &folder.path().join("other")));
    let chosen = self::results(&folder.path().join("other"))?["chosen"].take();
    assert_eq!(chosen["thresholds"]["signal"]["gate"]["weights"].as_array().map(Vec::len), Some(48));
    assert!(chosen["test"]["predicted_ms"].as_f64() > Some(0.));
    fails_with(
        &run("calibrate", &[&common[..], &["--shift", "no-such-folder", "--budget", "6"]].concat(), &out),
        1,
        &["--shift no-such-folder"],
    );

    // Thresholds for a budget take their place.
    let budget = ["--budget", "6", "--save"];
    succeed(&run("calibrate", &[&common[..], &budget].concat(), &out));
    let budgeted = SavedExits::load(&model, DEPTH)?;
    assert!(
        matches!(budgeted.calibration, Calibration::Budget { layers, samples: 144 } if layers <= 6.),
        "{budgeted:?}"
    );
    fails_with(&run("calibrate", &[&common[..], &["--budget", "0.5"]].concat(), &out), 1, &["budget of 0.5"]);
    fails_with(&run("calibrate", &[&common[..], &["--delta", "2"]].concat(), &out), 1, &["delta is 2"]);
    fails_with(
        &run("calibrate", &[&common[..], &["--layers", "12", "--budget", "9"]].concat(), &out),
        1,
        &["layer 12"],
    );

    let server = Server::start(&model, &[])?;
    let out = folder.path().join("load");
    let ask = ["load", "--preset", "smoke", "--address", &server.address, "--clients", "4", "--rounds", "1"];
    succeed(&run("early_exit_server", &ask, &out));
    figures(&out, &["latency"])?;
    let load = self::results(&out)?;
    assert_eq!(load["without_exits"]["layers"], 12.);
    let layers = load["with_exits"]["layers"].as_f64().ok_or("layers")?;
    assert!((1. ..9.).contains(&layers), "{layers}");
    let ratios = numbers(&load["throughput_ratio"]["rounds"]);
    assert!(ratios.len() == 1 && ratios[0] > 0., "{ratios:?}");
    Ok(())
}

#[test]
fn a_server_bears_bad_requests_and_clients_that_go_away() -> Done {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&model(), &["--threshold", "0.3", "--max-batch", "8"])?;
    let out = folder.path().join("soak");
    let ask =
        ["soak", "--preset", "smoke", "--seconds", "4", "--address", &server.address, "--clients", "16"];
    succeed(&run("early_exit_server", &ask, &out));
    figures(&out, &["soak"])?;
    let soak = results(&out)?;
    assert_eq!((soak["wrong"].as_array().map(Vec::len), &soak["server"]["failed"]), (Some(0), &0.into()));
    for doing in ["Good", "Garbage", "Half", "Dropped", "HalfSent", "Slow"] {
        assert!(soak["requests"][doing].as_u64() > Some(0), "{doing}: {}", soak["requests"]);
    }
    assert!(soak["server"]["gone"].as_u64() > Some(0), "{}", soak["server"]);
    let address: std::net::SocketAddr = server.address.parse()?;
    let said = |request: &str, body: &[u8]| -> Done<String> {
        let mut stream = std::net::TcpStream::connect(address)?;
        let head = format!(
            "{request} HTTP/1.1\r\nhost: here\r\nx-request-id: 7\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        // The server may answer, and close, before it has read everything.
        let _ = stream.write_all(body);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let mut png = Cursor::new(Vec::new());
    image::RgbImage::new(5000, 2).write_to(&mut png, image::ImageFormat::Png)?;
    for (request, body, status, words) in [
        ("POST /classify?exits=maybe", &b""[..], 400, "exits=off"),
        ("POST /classify", b"", 400, "PNG or JPEG"),
        ("POST /classify", &png.into_inner(), 400, "PNG or JPEG"),
        ("GET /classify", b"", 405, ""),
        ("GET /nothing", b"", 404, ""),
    ] {
        let said = said(request, body)?;
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(words),
            "{request}: {said}"
        );
        assert!(status > 400 || said.contains("x-request-id: 7"), "{request}: {said}");
    }
    let stats: Value = serde_json::from_str(said("GET /stats", b"")?.lines().last().ok_or("a body")?)?;
    assert_eq!((&stats["settings"]["max_batch"], &stats["failed"]), (&8.into(), &0.into()));
    if cfg!(unix) {
        // Asked to stop, it says what it did.
        let pid = server.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status()?.success());
        assert!(server.child.wait()?.success());
        let mut told = String::new();
        server.child.stdout.take().ok_or("its output")?.read_to_string(&mut told)?;
        // What the model's side counts is what HTTP's did, and some of those that went away.
        let count = |key: &str| stats[key].as_u64().unwrap_or(0);
        let line =
            told.lines().find_map(|line| line.trim().strip_prefix("answered: ")).ok_or(told.clone())?;
        let answered: u64 = line.trim_end_matches(',').parse()?;
        assert!(
            (count("answered")..=count("answered") + count("gone")).contains(&answered),
            "{stats} {told}"
        );
    }
    Ok(())
}

#[test]
fn wrong_flags_of_a_server_are_named() -> Done {
    let model = model();
    let serve = |more: &[&str]| {
        Command::new(example("early_exit_server"))
            .args(["serve", "--model", text(&model)])
            .args(more)
            .output()
    };
    fails_with(&serve(&["--threshold", "1.5"])?, 1, &["threshold is 1.5"]);
    fails_with(&serve(&["--threshold", "0.5", "--max-batch", "0"])?, 1, &["max_batch is 0"]);
    fails_with(&serve(&["--threshold", "0.5", "--queue", "0"])?, 1, &["queue is 0"]);
    fails_with(&serve(&["--threshold", "0.5", "--address", "256.0.0.1:1"])?, 2, &["--address"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    fails_with(&serve(&["--threshold", "0.5", "--address", &address])?, 1, &["--address", &address]);
    let folder = tempfile::tempdir()?;
    let load = |address: &str| run("early_exit_server", &["load", "--address", address], folder.path());
    drop(taken);
    fails_with(&load(&address), 1, &["no server there?"]);
    Ok(())
}
