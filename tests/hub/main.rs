//! `layerwise::hub` against caches made by hand, and against a hub of a few lines on this machine. No
//! network.

mod server;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use layerwise::hub::{self, Error, Hub};
use server::{COMMIT, Server};

/// A snapshot in a cache, as a download leaves it: names and contents.
fn cache(repository: &str, files: &[(&str, &str)]) -> Result<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let repository = dir.path().join(repository);
    let folder = repository.join("snapshots").join(COMMIT);
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&folder))?;
        fs::write(path, content)?;
    }
    fs::create_dir_all(repository.join("refs"))?;
    fs::write(repository.join("refs/main"), COMMIT)?;
    Ok((dir, folder))
}

fn offline(cache: &Path) -> Hub {
    Hub { cache_dir: Some(cache.to_owned()), endpoint: None, revision: None, offline: true }
}

fn online(cache: &Path, server: &Server) -> Hub {
    Hub { endpoint: Some(server.endpoint.clone()), offline: false, ..offline(cache) }
}

const INDEX: &str = r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors",
    "b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}"#;

#[test]
fn a_model_in_the_cache_needs_no_request() -> Result<()> {
    let files = [("config.json", "{}"), ("model.safetensors", "w")];
    let (dir, folder) = cache("models--owner--name", &files)?;
    assert_eq!(offline(dir.path()).model("owner/name")?, folder);
    // The same commit by its name.
    let hub = Hub { revision: Some(COMMIT.to_owned()), ..offline(dir.path()) };
    assert_eq!(hub.model("owner/name")?, folder);

    let shards = [
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{}"),
        ("model.safetensors.index.json", INDEX),
        ("model-00001-of-00002.safetensors", "w"),
        ("model-00002-of-00002.safetensors", "w"),
    ];
    let (dir, folder) = cache("models--gpt2", &shards)?;
    assert_eq!(offline(dir.path()).model("gpt2")?, folder);
    Ok(())
}

#[test]
fn what_the_cache_lacks_is_named() -> Result<()> {
    let lacks = |files: &[(&str, &str)], revision: Option<&str>| -> Result<String> {
        let (dir, folder) = cache("models--owner--name", files)?;
        let hub = Hub { revision: revision.map(str::to_owned), ..offline(dir.path()) };
        let error = hub.model("owner/name").unwrap_err();
        let text = error.to_string();
        let Error::Offline { id, file, cache } = error else { panic!("{error}") };
        assert_eq!(id, "owner/name");
        assert!(folder.starts_with(&cache) && text.contains(&file) && text.contains("owner/name"), "{text}");
        Ok(file)
    };
    assert_eq!(lacks(&[], None)?, "config.json");
    assert_eq!(lacks(&[("model.safetensors", "w")], None)?, "config.json");
    assert_eq!(lacks(&[("config.json", "{}")], None)?, "model.safetensors");
    let all = [("config.json", "{}"), ("model.safetensors", "w")];
    assert_eq!(lacks(&all, Some("v2"))?, "config.json");
    let half = [
        ("config.json", "{}"),
        ("model.safetensors.index.json", INDEX),
        ("model-00001-of-00002.safetensors", "w"),
    ];
    assert_eq!(lacks(&half, None)?, "model-00002-of-00002.safetensors");
    Ok(())
}

#[test]
fn an_index_that_is_none_is_named() -> Result<()> {
    for index in ["", "not json", "[]", "{}", r#"{"weight_map": {}}"#, r#"{"weight_map": {"a": 1}}"#] {
        let files = [("config.json", "{}"), ("model.safetensors.index.json", index)];
        let (dir, folder) = cache("models--owner--name", &files)?;
        match offline(dir.path()).model("owner/name") {
            Err(Error::Index { path, .. }) => assert_eq!(path, folder.join("model.safetensors.index.json")),
            other => panic!("{index}: {other:?}"),
        }
    }
    Ok(())
}

#[test]
fn an_index_leads_to_no_other_folder() -> Result<()> {
    for name in ["../x", "/etc/passwd", "a/../../x", "..", ".", "", "a//x", r"..\\x", "C:x", r"a\u0000"] {
        let index = format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
        let files = [("config.json", "{}"), ("model.safetensors.index.json", &index)];
        let (dir, _) = cache("models--owner--name", &files)?;
        match offline(dir.path()).model("owner/name") {
            Err(Error::FileName { id, .. }) => assert_eq!(id, "owner/name"),
            other => panic!("{name:?}: {other:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_data_set_in_the_cache() -> Result<()> {
    let (train, test) = ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet");
    let (dir, folder) = cache("datasets--owner--name", &[(train, "p"), (test, "p"), ("README.md", "x")])?;
    assert_eq!(offline(dir.path()).data_set("owner/name")?, folder.join("plain_text"));

    let flat =
        [("validation-0.parquet", "p"), ("train-00000-of-00001-1a2b.parquet", "p"), ("x/y.parquet", "p")];
    let (dir, folder) = cache("datasets--owner--name", &flat)?;
    assert_eq!(offline(dir.path()).data_set("owner/name")?, folder);

    let (dir, folder) =
        cache("datasets--owner--name", &[("a/train-0.parquet", "p"), ("b/train-0.parquet", "p")])?;
    assert_eq!(offline(dir.path()).data_set("owner/name")?, folder);
    Ok(())
}

#[test]
fn half_a_data_set_is_none() -> Result<()> {
    let lacks = |files: &[(&str, &str)]| -> Result<String> {
        let (dir, _) = cache("datasets--owner--name", files)?;
        match offline(dir.path()).data_set("owner/name") {
            Err(Error::Offline { file, .. }) => Ok(file),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lacks(&[])?, "*.parquet");
    assert_eq!(lacks(&[("train.csv", "x"), ("data/other-0.parquet", "p")])?, "*.parquet");
    let half = [("d/test-00000-of-00001.parquet", "p"), ("d/train-00001-of-00002.parquet", "p")];
    assert_eq!(lacks(&half)?, "d/train-00000-of-00002.parquet");
    // Numbers that nobody would count to.
    let huge = [("train-00000-of-4294967295.parquet", "p"), ("train-00001-of-99999999999.parquet", "p")];
    assert_eq!(lacks(&huge)?, "train-00001-of-4294967295.parquet");
    Ok(())
}

#[test]
fn downloads_once() -> Result<()> {
    let server = Server::new(&[
        ("owner/name", "README.md", "not wanted"),
        ("owner/name", "config.json", "{}"),
        ("owner/name", "layerwise.json", "{\"a\": 1}"),
        ("owner/name", "model.safetensors", "weights"),
        ("owner/name", "pytorch_model.bin", "not wanted"),
    ])?;
    let dir = tempfile::tempdir()?;
    let hub = online(dir.path(), &server);
    let folder = hub.model("owner/name")?;
    assert_eq!(folder, dir.path().join("models--owner--name/snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(folder.join("config.json"))?, "{}");
    assert_eq!(fs::read_to_string(folder.join("model.safetensors"))?, "weights");
    assert_eq!(server.contents(), ["config.json", "layerwise.json", "model.safetensors"]);
    assert_eq!(fs::read_dir(&folder)?.count(), 3);

    // The second time what the hub has is asked for, and nothing else; offline not even that.
    server.forget();
    assert_eq!(hub.model("owner/name")?, folder);
    assert_eq!(server.requests().len(), 2, "{:?}", server.requests());
    assert_eq!(server.contents(), [""; 0]);
    server.forget();
    assert_eq!(offline(dir.path()).model("owner/name")?, folder);
    assert_eq!(server.requests(), [""; 0]);

    // By the name of the commit: one request less, and no branch that points to it.
    let other = tempfile::tempdir()?;
    let hub = Hub { revision: Some(COMMIT.to_owned()), ..online(other.path(), &server) };
    assert!(hub.model("owner/name")?.ends_with(COMMIT));
    assert!(!other.path().join("models--owner--name/refs").exists());
    Ok(())
}

#[test]
fn downloads_shards_and_ids_without_owner() -> Result<()> {
    let server = Server::new(&[
        ("gpt2", "config.json", "{}"),
        ("gpt2", "model.safetensors.index.json", INDEX),
        ("gpt2", "model-00001-of-00002.safetensors", "one"),
        ("gpt2", "model-00002-of-00002.safetensors", "two"),
        ("owner/half", "config.json", "{}"),
        ("owner/half", "model.safetensors.index.json", INDEX),
        ("owner/half", "model-00001-of-00002.safetensors", "one"),
    ])?;
    let dir = tempfile::tempdir()?;
    let hub = online(dir.path(), &server);
    let folder = hub.model("gpt2")?;
    assert_eq!(fs::read_to_string(folder.join("model-00002-of-00002.safetensors"))?, "two");
    assert_eq!(offline(dir.path()).model("gpt2")?, folder);

    match hub.model("owner/half") {
        Err(Error::NotFound { file, .. }) => assert_eq!(file, "model-00002-of-00002.safetensors"),
        other => panic!("{other:?}"),
    }
    // A branch points to what is there in full.
    assert!(!dir.path().join("models--owner--half/refs").exists());
    Ok(())
}

#[test]
fn downloads_a_data_set() -> Result<()> {
    let (train, test) = ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet");
    let server = Server::new(&[
        ("datasets/owner/name", "README.md", "x"),
        ("datasets/owner/name", train, "train"),
        ("datasets/owner/name", test, "test"),
        ("datasets/owner/csv", "train-0.csv", "x"),
        ("datasets/owner/hostile", "../train-0.parquet", "x"),
    ])?;
    let dir = tempfile::tempdir()?;
    let hub = Hub { revision: Some("refs/convert/parquet".to_owned()), ..online(dir.path(), &server) };
    let folder = hub.data_set("owner/name")?;
    assert!(folder.ends_with(Path::new("snapshots").join(COMMIT).join("plain_text")), "{folder:?}");
    assert_eq!(fs::read_to_string(folder.join("train-00000-of-00001.parquet"))?, "train");
    assert_eq!(server.contents(), [test, train]);
    assert_eq!(Hub { offline: true, ..hub.clone() }.data_set("owner/name")?, folder);

    assert!(matches!(hub.data_set("owner/csv"), Err(Error::NoParquet { id }) if id == "owner/csv"));
    match hub.data_set("owner/hostile") {
        Err(Error::FileName { file, .. }) => assert_eq!(file, "../train-0.parquet"),
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
fn what_the_hub_lacks_is_named() -> Result<()> {
    let server = Server::new(&[("owner/name", "config.json", "{}"), ("owner/empty", "README.md", "x")])?;
    let dir = tempfile::tempdir()?;
    let hub = online(dir.path(), &server);
    let error = hub.model("owner/name").unwrap_err();
    assert_eq!(error.to_string(), "owner/name: the repository has no model.safetensors");
    let error = hub.model("owner/empty").unwrap_err();
    assert_eq!(error.to_string(), "owner/empty: the repository has no config.json");
    let error = hub.model("owner/other").unwrap_err();
    assert!(
        matches!(&error, Error::Repository { id, revision } if id == "owner/other" && revision == "main")
    );
    let hub = Hub { revision: Some(COMMIT.to_owned()), ..hub };
    assert!(matches!(hub.data_set("owner/name"), Err(Error::Repository { .. })));
    Ok(())
}

#[test]
fn a_refusal_is_an_error() -> Result<()> {
    let files = [("owner/name", "config.json", "{}"), ("owner/name", "model.safetensors", "weights")];
    // At the first question, and at the first file, as for a gated repository.
    for at in ["/revision/", "/tree/", "HEAD "] {
        for status in [401, 403] {
            let server = Server::failing(&files, at, status)?;
            let dir = tempfile::tempdir()?;
            let error = online(dir.path(), &server).model("owner/name").unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{at} {status}: {error:?}");
            assert!(error.to_string().contains("HF_TOKEN"), "{error}");
        }
    }
    Ok(())
}

#[test]
fn without_an_answer_the_cache_has_to_do() -> Result<()> {
    let files = [("config.json", "{}"), ("model.safetensors", "w")];
    let (full, folder) = cache("models--owner--name", &files)?;
    let empty = tempfile::tempdir()?;

    let server = Server::failing(&[], "/revision/", 500)?;
    assert_eq!(online(full.path(), &server).model("owner/name")?, folder);
    let error = online(empty.path(), &server).model("owner/name").unwrap_err();
    assert!(matches!(&error, Error::Hub { id, .. } if id == "owner/name"), "{error:?}");
    assert!(error.to_string().contains("500"), "{error}");

    // Nobody listens at the port of a listener that is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let hub = Hub { endpoint: Some(format!("http://127.0.0.1:{port}")), ..online(full.path(), &server) };
    assert_eq!(hub.model("owner/name")?, folder);
    assert!(matches!(
        Hub { endpoint: Some("no address".to_owned()), ..hub }.model("owner/name"),
        Err(Error::Hub { .. })
    ));
    Ok(())
}

#[test]
fn answers_that_make_no_sense_are_errors() -> Result<()> {
    let files = [("owner/name", "config.json", "{}"), ("owner/name", "model.safetensors", "weights")];
    for at in ["/revision/", "/tree/", "HEAD "] {
        // An answer of status 200 whose body is `null`, without the headers of a file.
        let server = Server::failing(&files, at, 200)?;
        let dir = tempfile::tempdir()?;
        let error = online(dir.path(), &server).model("owner/name").unwrap_err();
        assert!(matches!(error, Error::Hub { .. }), "{at}: {error:?}");
    }
    Ok(())
}

/// hf-hub writes an answer of status 403 or 500 to a request for a file's content into the cache as if it
/// were the content.
#[test]
fn an_error_page_is_not_the_file() -> Result<()> {
    let files = [("owner/name", "config.json", "{}"), ("owner/name", "model.safetensors", "weights")];
    let dir = tempfile::tempdir()?;
    let server = Server::failing(&files, "GET /content/model", 403)?;
    let error = online(dir.path(), &server).model("owner/name").unwrap_err();
    assert!(
        matches!(&error, Error::Size { file, expected: 7, .. } if file == "model.safetensors"),
        "{error:?}"
    );
    // The page is gone from the cache.
    let hub = Hub { revision: Some(COMMIT.to_owned()), ..offline(dir.path()) };
    match hub.model("owner/name") {
        Err(Error::Offline { file, .. }) => assert_eq!(file, "model.safetensors"),
        other => panic!("{other:?}"),
    }

    // So is one that somebody else left there.
    let server = Server::new(&files)?;
    let folder = online(dir.path(), &server).model("owner/name")?;
    assert_eq!(fs::read_to_string(folder.join("model.safetensors"))?, "weights");
    fs::write(folder.join("model.safetensors"), "Forbidden")?;
    assert_eq!(online(dir.path(), &server).model("owner/name")?, folder);
    assert_eq!(fs::read_to_string(folder.join("model.safetensors"))?, "weights");
    Ok(())
}

#[test]
fn ids_and_revisions() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let hub = offline(dir.path());
    for id in ["gpt2", "owner/name", "a/b", "Owner-1/na_me.v2", "_a/_b"] {
        assert!(matches!(hub.model(id), Err(Error::Offline { .. })), "{id}");
        assert!(matches!(hub.data_set(id), Err(Error::Offline { .. })), "{id}");
    }
    let long = "a".repeat(97);
    for id in [
        "",
        "/",
        "/name",
        "owner/",
        "a/b/c",
        "..",
        "../b",
        "a/..",
        ".a/b",
        "a/b.",
        "-a/b",
        "a/b-",
        "a--b/c",
        "a/b..c",
        "a b/c",
        "a\\b",
        "a/b\n",
        "a/b?c",
        "a/é",
        "https://huggingface.co/a/b",
        &long,
    ] {
        assert!(matches!(hub.model(id), Err(Error::Id { id: named }) if named == id), "{id:?}");
        assert!(matches!(hub.data_set(id), Err(Error::Id { .. })), "{id:?}");
    }
    for revision in ["", "..", "../../x", "a/../b", "/main", "a//b", "a\\b"] {
        let hub = Hub { revision: Some(revision.to_owned()), ..hub.clone() };
        assert!(matches!(hub.model("a/b"), Err(Error::Revision { .. })), "{revision:?}");
    }
    Ok(())
}

/// The defaults come from the environment, so each case is a process of its own: this test again, with
/// `CASE` set.
#[test]
fn defaults_come_from_the_environment() -> Result<()> {
    const CASE: &str = "LAYERWISE_TEST_HUB_OFFLINE";
    if let Ok(expected) = env::var(CASE) {
        assert_eq!(Hub::default().offline, expected == "true");
        if Hub::default().offline {
            assert!(hub::model("owner/name")?.ends_with(COMMIT));
            assert!(matches!(hub::data_set("owner/name"), Err(Error::Offline { .. })));
        }
        return Ok(());
    }
    let files = [("config.json", "{}"), ("model.safetensors", "w")];
    let (dir, _) = cache("models--owner--name", &files)?;
    for (value, offline) in [
        (None, false),
        (Some("1"), true),
        (Some("YES"), true),
        (Some("true"), true),
        (Some("0"), false),
        (Some(""), false),
    ] {
        let mut child = Command::new(env::current_exe()?);
        child.args(["--exact", "defaults_come_from_the_environment"]).env_remove("HF_HUB_OFFLINE");
        child.env("HF_HUB_CACHE", dir.path()).env(CASE, offline.to_string());
        if let Some(value) = value {
            child.env("HF_HUB_OFFLINE", value);
        }
        let output = child.output()?;
        assert!(output.status.success(), "{value:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}
