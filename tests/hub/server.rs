//! A hub with the four endpoints that hf-hub asks, for tests.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// The commit that each branch of each repository is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Answers until the process ends.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct State {
    /// Repository, `datasets/` before those of data sets; name; content.
    files: Vec<[String; 3]>,
    endpoint: String,
    /// Requests that contain the text are answered with the status.
    failure: Option<(String, u16)>,
}

impl Server {
    pub(crate) fn new(files: &[(&str, &str, &str)]) -> std::io::Result<Self> {
        Self::start(files, None)
    }

    pub(crate) fn failing(files: &[(&str, &str, &str)], at: &str, status: u16) -> std::io::Result<Self> {
        Self::start(files, Some((at.to_owned(), status)))
    }

    fn start(files: &[(&str, &str, &str)], failure: Option<(String, u16)>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let files = files.iter().map(|&(a, b, c)| [a, b, c].map(str::to_owned)).collect();
        let state = State { files, endpoint: endpoint.clone(), failure };
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, log) = (state.clone(), log.clone());
                // A client that leaves is no concern of ours.
                thread::spawn(move || state.answer(stream, &log).ok());
            }
        });
        Ok(Self { endpoint, requests })
    }

    /// Method and path of each request.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("nobody panics with the lock").clone()
    }

    /// The files whose contents were sent.
    pub(crate) fn contents(&self) -> Vec<String> {
        let content = |request: &String| Some(request.strip_prefix("GET /content/")?.to_owned());
        self.requests().iter().filter_map(content).collect()
    }

    pub(crate) fn forget(&self) {
        self.requests.lock().expect("nobody panics with the lock").clear();
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        while !lines.next().unwrap_or(Ok(String::new()))?.is_empty() {}
        let request = first.trim_end_matches(" HTTP/1.1").to_owned();
        log.lock().expect("nobody panics with the lock").push(request.clone());

        let (status, headers, body) = match &self.failure {
            Some((at, status)) if request.contains(at) => (*status, String::new(), "null".to_owned()),
            _ => {
                self.route(&request).unwrap_or((404, String::new(), "{\"error\": \"not found\"}".to_owned()))
            }
        };
        let head = format!(
            "HTTP/1.1 {status} -\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        if !request.starts_with("HEAD ") {
            stream.write_all(body.as_bytes())?;
        }
        Ok(())
    }

    /// Status, headers, body.
    fn route(&self, request: &str) -> Option<(u16, String, String)> {
        let (_, url) = request.split_once(' ')?;
        let path = url.split('?').next()?;
        if let Some(name) = path.strip_prefix("/content/") {
            let [_, _, content] = self.files.iter().find(|[_, file, _]| file == name)?;
            return Some((200, String::new(), content.clone()));
        }
        if let Some(path) = path.strip_prefix("/api/") {
            let path = path.strip_prefix("models/").unwrap_or(path);
            if let Some((repository, _)) = path.split_once("/revision/") {
                self.files.iter().find(|[r, ..]| r == repository)?;
                return Some((200, String::new(), format!(r#"{{"id": "{repository}", "sha": "{COMMIT}"}}"#)));
            }
            let (repository, commit) = path.split_once("/tree/")?;
            let files = self.files.iter().filter(|[r, ..]| r == repository && commit == COMMIT);
            let entries: Vec<String> = files
                .map(|[_, name, content]| {
                    format!(r#"{{"type": "file", "oid": "1", "size": {}, "path": "{name}"}}"#, content.len())
                })
                .collect();
            let folder = r#"{"type": "directory", "oid": "1", "size": 0, "path": "folder"}"#.to_owned();
            let entries = [vec![folder], entries].concat();
            return (entries.len() > 1).then(|| (200, String::new(), format!("[{}]", entries.join(","))));
        }
        // As the hub does, the file is somewhere else, and what describes it is here.
        let (repository, name) = path.strip_prefix('/')?.split_once("/resolve/")?;
        let name = name.strip_prefix(COMMIT)?.strip_prefix('/')?;
        let [_, _, content] = self.files.iter().find(|[r, file, _]| r == repository && file == name)?;
        let etag = name.replace('/', "-");
        let headers = format!(
            "Location: {}/content/{name}\r\nX-Repo-Commit: {COMMIT}\r\n\
             X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\n",
            self.endpoint,
            content.len()
        );
        Some((302, headers, String::new()))
    }
}
