//! A client of HTTP that says what it is told to, right or wrong, and Debian's tools that read what is served.
//! Knows no endpoint.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::PATIENCE;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status, such as 200.
    pub status: u16,
    /// All headers, in lower case.
    pub headers: String,
    /// What follows them.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.headers.lines();
        let mut pairs = lines.filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// A connection to a port of this machine, which gives up in time.
pub fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("failed to connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Gets a path.
pub fn get(port: u16, path: &str) -> Answer {
    ask(port, "GET", path, &[])
}

/// Makes a request with headers beside Host.
pub fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        request.push_str(&format!("Host: 127.0.0.1:{port}\r\n"));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut stream = connect(port);
    stream.write_all(request.as_bytes()).expect("failed to ask");
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .expect("failed to read an answer");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {bytes:?}"));
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Answer {
        status: status.expect("a status"),
        headers: head,
        body: bytes[end + 4..].to_vec(),
    }
}

/// Debian's `promtool`, unpacked without being installed, which would start a server.
pub fn promtool() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus");
    let tool = folder.join("usr/bin/promtool");
    if !tool.exists() {
        let partial = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        run(Command::new("apt-get")
            .args(["download", "-qq", "prometheus"])
            .current_dir(&partial));
        let package = fs::read_dir(&partial)
            .expect("a folder")
            .next()
            .expect("a package")
            .expect("a name");
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package.path())
            .arg(partial.path()));
        // another test may have been faster
        let _ = fs::rename(partial.path(), &folder);
    }
    assert!(tool.exists(), "failed to unpack {}", tool.display());
    tool
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "failed: {command:?}"
    );
}
