//! Debug information from debuginfod servers, by build id, through the cache that elfutils' tools share.
//! Nothing is asked of the network unless a server is named; what comes from one is read by the reader like any other file.

use std::collections::HashMap;
use std::env;
use std::fs::{self, DirBuilder};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::files::{self, MOST_OBJECT_BYTES};
use crate::model::report::hex;
use crate::reader;
use crate::stderr::say;

/// Time for one file of one server, its connection included.
const TIME_OF_FILE: Duration = Duration::from_secs(30);

/// Time for a connection.
const TIME_TO_CONNECT: Duration = Duration::from_secs(5);

/// Time for everything that one run downloads: then it goes on with what it has.
const TIME_OF_RUN: Duration = Duration::from_secs(90);

/// Bytes of one file.
const MOST_BYTES: u64 = 1 << 30;

/// Bytes that the cache may hold: what was used longest ago goes first.
const MOST_CACHED: u64 = 4 << 30;

/// Bytes of a build id: shorter ones collide, and no linker writes longer ones.
const BUILD_ID: std::ops::RangeInclusive<usize> = 8..=64;

/// A variable that names servers, as elfutils has it: separated by blanks.
const SERVERS: &str = "DEBUGINFOD_URLS";

/// What is asked for of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Names, files and lines.
    Debuginfo,
    /// The program or library itself.
    Executable,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Debuginfo => "debuginfo",
            Part::Executable => "executable",
        }
    }
}

/// Servers and the cache in front of them.
pub struct Debuginfod {
    servers: Vec<String>,
    cache: PathBuf,
    agent: ureq::Agent,
    /// What was asked for, and where it is; none: nobody has it.
    known: HashMap<(Vec<u8>, Part), Option<PathBuf>>,
    /// Time that downloads have taken.
    spent: Duration,
}

impl Debuginfod {
    /// The servers that the user names, and those of the environment; none when there are none.
    pub fn new(named: &[String]) -> Option<Self> {
        let environment = env::var(SERVERS).unwrap_or_default();
        let servers: Vec<String> = named
            .iter()
            .map(String::as_str)
            .chain(environment.split_whitespace())
            .map(|server| server.trim_end_matches('/').to_owned())
            .collect();
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(TIME_TO_CONNECT))
            .timeout_global(Some(TIME_OF_FILE))
            .max_redirects(4)
            .user_agent(concat!("memleak/", env!("CARGO_PKG_VERSION")))
            .build();
        (!servers.is_empty()).then(|| Self {
            servers,
            cache: cache_folder(),
            agent: config.into(),
            known: HashMap::new(),
            spent: Duration::ZERO,
        })
    }

    /// A file of a build: from the cache, or from the first server that has it. What goes wrong is said once, in a line.
    pub fn find(&mut self, build_id: &[u8], part: Part) -> Option<PathBuf> {
        if !BUILD_ID.contains(&build_id.len()) {
            return None;
        }
        let key = (build_id.to_vec(), part);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let place = self.cache.join(hex(build_id)).join(part.name());
        let found = match is_of_build(&place, build_id) {
            true => Some(place),
            false => self.download(build_id, part, &place).then_some(place),
        };
        self.known.insert(key, found.clone());
        found
    }

    /// Whether a server had it.
    fn download(&mut self, build_id: &[u8], part: Part, place: &Path) -> bool {
        for at in 0..self.servers.len() {
            if self.spent >= TIME_OF_RUN {
                say!("debuginfod: no more is downloaded in this run, {TIME_OF_RUN:?} have passed");
                self.servers.clear();
                return false;
            }
            let begun = Instant::now();
            let url = format!(
                "{}/buildid/{}/{}",
                self.servers[at],
                hex(build_id),
                part.name()
            );
            let loaded = self.load(&url, build_id, place);
            self.spent += begun.elapsed();
            match loaded {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => say!("debuginfod: {error:#}"),
            }
        }
        false
    }

    /// Downloads into the cache; false when the server has no such file.
    fn load(&self, url: &str, build_id: &[u8], place: &Path) -> Result<bool> {
        let asked = self.agent.get(url).call();
        let mut response = match asked {
            Ok(response) => response,
            Err(ureq::Error::StatusCode(404)) => return Ok(false),
            Err(error) => bail!("failed to load {url}: {error}"),
        };
        let folder = place.parent().context("a file of the cache has a folder")?;
        let make = || DirBuilder::new().recursive(true).mode(0o700).create(folder);
        make().with_context(|| format!("failed to make the folder {}", folder.display()))?;
        let mut file = tempfile::NamedTempFile::new_in(folder)
            .with_context(|| format!("failed to write to {}", folder.display()))?;
        let body = response.body_mut().as_reader();
        let written = io::copy(&mut body.take(MOST_BYTES + 1), &mut file)
            .and_then(|written| file.flush().map(|()| written))
            .with_context(|| format!("failed to load {url}"))?;
        if written > MOST_BYTES {
            bail!("{url} is too large: more than {MOST_BYTES} bytes");
        }
        if !is_of_build(file.path(), build_id) {
            bail!("{url} is not what was asked for: it has another build id, or none");
        }
        file.persist(place)
            .with_context(|| format!("failed to write {}", place.display()))?;
        prune(&self.cache, place.parent(), MOST_CACHED);
        Ok(true)
    }
}

/// Whether a file is there that has a build id.
fn is_of_build(path: &Path, build_id: &[u8]) -> bool {
    let Ok(file) = files::open(path, MOST_OBJECT_BYTES) else {
        return false;
    };
    let facts = reader::facts(file.file());
    facts.is_some_and(|facts| facts.build_id.as_deref() == Some(build_id))
}

/// Where elfutils keeps its cache.
fn cache_folder() -> PathBuf {
    let folder = |name: &str| {
        env::var_os(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let home = folder("HOME").unwrap_or_else(|| PathBuf::from("/"));
    folder("DEBUGINFOD_CACHE_PATH")
        .or_else(|| Some(home.join(".debuginfod_client_cache")).filter(|path| path.is_dir()))
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("debuginfod_client")))
        .unwrap_or_else(|| home.join(".cache/debuginfod_client"))
}

/// Removes the builds that were used longest ago until the cache holds no more than `most` bytes, but never `keep`.
fn prune(cache: &Path, keep: Option<&Path>, most: u64) {
    let mut builds: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for folder in fs::read_dir(cache).into_iter().flatten().flatten() {
        // what else lies there is elfutils' own
        let name = folder.file_name();
        if !name
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit())
        {
            continue;
        }
        let (mut used, mut bytes) = (SystemTime::UNIX_EPOCH, 0);
        for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            if let Ok(facts) = file.metadata() {
                bytes += facts.len();
                let last = facts.accessed().or_else(|_| facts.modified());
                used = used.max(last.unwrap_or(SystemTime::UNIX_EPOCH));
            }
        }
        builds.push((used, bytes, folder.path()));
    }
    builds.sort();
    let mut total: u64 = builds.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, folder) in builds {
        if total <= most {
            return;
        }
        if Some(&*folder) != keep && fs::remove_dir_all(&folder).is_ok() {
            total -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn write(path: &Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn the_cache_loses_what_was_used_longest_ago() {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path();
        for (at, name) in ["aa", "bb", "cc"].into_iter().enumerate() {
            let file = cache.join(name).join("debuginfo");
            write(&file, &[0; 100]);
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + at as u64);
            let times = fs::FileTimes::new().set_accessed(used).set_modified(used);
            File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_times(times)
                .unwrap();
        }
        write(&cache.join("max_unused_age_s"), b"1");
        prune(cache, Some(&cache.join("bb")), 150);
        let left = |name: &str| cache.join(name).exists();
        assert!(!left("aa") && left("bb") && !left("cc") && left("max_unused_age_s"));
    }

    #[test]
    fn without_a_server_there_is_nobody_to_ask() {
        if env::var_os(SERVERS).is_none() {
            assert!(Debuginfod::new(&[]).is_none());
        }
        assert!(Debuginfod::new(&["http://127.0.0.1:1/".to_owned()]).is_some());
    }
}
