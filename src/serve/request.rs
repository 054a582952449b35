//! What a client asks for, and whether it may: host, origin, method, path and query.
//! Pure: no request reaches a file, a process or the tracer from here.

use std::net::IpAddr;

use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, StatusCode, Uri};

/// The longest time between two reports that a profile may be about, in seconds.
pub const MOST_SECONDS: u64 = 300;

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// What is known now.
    Now(Format),
    /// A profile of what comes to be outstanding within some seconds.
    Delta {
        /// Of this process alone.
        pid: Option<u32>,
        /// How long.
        seconds: u64,
    },
}

/// How it is to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The page that keeps itself up to date.
    Live,
    /// The HTML report.
    Html,
    /// The report as JSON.
    Json,
    /// The report as text.
    Text,
    /// A profile for pprof, of one process or of all.
    Pprof(Option<u32>),
    /// Figures for Prometheus.
    Metrics,
    /// The run so far, for `memleak report`.
    Recording,
    /// A word that all is well.
    Health,
}

/// Why a client does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What to say to programs.
    pub status: StatusCode,
    /// What to say to people.
    pub why: &'static str,
}

impl Refusal {
    fn new(status: StatusCode, why: &'static str) -> Self {
        Self { status, why }
    }

    /// There is no such thing.
    pub fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not found; there are /, /metrics, /report.json, /report.txt, /report.html, /recording.jsonl, \
             /debug/pprof/heap and /healthz\n",
        )
    }

    /// There are too many who wait, or there is nothing to wait for.
    pub fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many requests wait for a later report, or none will come; try again later\n",
        )
    }
}

/// Through which names clients may come: a page from elsewhere whose name was made to lead here may not.
pub struct Origin<'a> {
    /// Names of this machine, beside addresses and localhost.
    pub hosts: &'a [String],
}

impl Origin<'_> {
    /// Refuses a request that was made for another host, or by a page of another.
    ///
    /// # Errors
    /// What to answer.
    pub fn check<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let headers = request.headers();
        let asked = match request.uri().authority() {
            Some(authority) => Some(authority.as_str()),
            None => single(headers, header::HOST)?,
        };
        let Some(asked) = asked else {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "a request needs one Host\n",
            ));
        };
        if !self.knows(asked) {
            return Err(Refusal::new(
                StatusCode::MISDIRECTED_REQUEST,
                "this host name is not known here: use an address, or start memleak with --allow-host NAME\n",
            ));
        }
        let elsewhere = Refusal::new(StatusCode::FORBIDDEN, "not for pages from elsewhere\n");
        match single(headers, header::ORIGIN)? {
            None => Ok(()),
            Some(origin) => {
                let host = origin.split_once("://").map(|(_, host)| host);
                match host.is_some_and(|host| host.eq_ignore_ascii_case(asked)) {
                    true => Ok(()),
                    false => Err(elsewhere),
                }
            }
        }
    }

    fn knows(&self, authority: &str) -> bool {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        host.parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || self
                .hosts
                .iter()
                .any(|known| known.eq_ignore_ascii_case(host))
    }
}

/// A header that may be there once.
fn single(headers: &HeaderMap, name: header::HeaderName) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str());
    match (first, values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value)),
        _ => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "Host and Origin can be given once, in ASCII\n",
        )),
    }
}

/// What a request is for.
///
/// # Errors
/// What to answer if it is for nothing that there is.
pub fn route(method: &Method, uri: &Uri) -> Result<Route, Refusal> {
    if method != Method::GET && method != Method::HEAD {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "nothing can be changed here: use GET or HEAD\n",
        ));
    }
    let format = match uri.path() {
        "/" => Format::Live,
        "/report.html" => Format::Html,
        "/report.json" => Format::Json,
        "/report.txt" => Format::Text,
        "/metrics" => Format::Metrics,
        "/recording.jsonl" => Format::Recording,
        "/healthz" => Format::Health,
        "/debug/pprof/heap" => return profile(method, uri.query().unwrap_or_default()),
        _ => return Err(Refusal::not_found()),
    };
    Ok(Route::Now(format))
}

fn profile(method: &Method, query: &str) -> Result<Route, Refusal> {
    let (mut pid, mut seconds) = (None, 0);
    for (name, value) in query.split('&').filter_map(|part| part.split_once('=')) {
        let wrong = |_| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "pid must be a process id, and seconds a whole number\n",
            )
        };
        match name {
            "pid" => pid = Some(value.parse().map_err(wrong)?),
            "seconds" => seconds = value.parse().map_err(wrong)?,
            // Go's own endpoint has others, which mean nothing here
            _ => {}
        }
    }
    if seconds > MOST_SECONDS {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "seconds can be 300 at the most\n",
        ));
    }
    // a head is no reason to wait
    match seconds > 0 && method == Method::GET {
        true => Ok(Route::Delta { pid, seconds }),
        false => Ok(Route::Now(Format::Pprof(pid))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let hosts = ["node7".to_owned()];
        let origin = Origin { hosts: &hosts };
        let checked = origin.check(&request.body(()).unwrap());
        checked.err().map(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn a_name_that_was_made_to_lead_here_is_refused() {
        for known in [
            "127.0.0.1:9464",
            "[::1]:80",
            "localhost",
            "LOCALHOST:1",
            "node7:9464",
            "10.1.2.3",
        ] {
            assert_eq!(check(&[("host", known)]), None, "{known}");
        }
        for other in [
            "evil.example",
            "evil.example:9464",
            "127.0.0.1.evil.example",
            "",
            "node7.evil",
        ] {
            assert_eq!(check(&[("host", other)]), Some(421), "{other}");
        }
        assert_eq!(check(&[]), Some(400));
        assert_eq!(check(&[("host", "a"), ("host", "127.0.0.1")]), Some(400));
    }

    #[test]
    fn pages_from_elsewhere_are_refused() {
        let host = ("host", "127.0.0.1:9464");
        assert_eq!(check(&[host, ("origin", "http://127.0.0.1:9464")]), None);
        for origin in ["http://evil.example", "null", "http://127.0.0.1:9465"] {
            assert_eq!(check(&[host, ("origin", origin)]), Some(403), "{origin}");
        }
    }

    #[test]
    fn paths_lead_to_formats_and_nowhere_else() {
        let get = |uri: &str| route(&Method::GET, &uri.parse().unwrap());
        assert_eq!(get("/"), Ok(Route::Now(Format::Live)));
        assert_eq!(
            get("/debug/pprof/heap?pid=7&gc=1"),
            Ok(Route::Now(Format::Pprof(Some(7))))
        );
        let delta = Route::Delta {
            pid: None,
            seconds: 5,
        };
        assert_eq!(get("/debug/pprof/heap?seconds=5"), Ok(delta));
        for wrong in ["/debug/pprof/heap?pid=x", "/debug/pprof/heap?seconds=301"] {
            assert_eq!(get(wrong).unwrap_err().status, 400, "{wrong}");
        }
        for unknown in [
            "/../etc/passwd",
            "/recording.jsonl/../../etc/passwd",
            "/%2e%2e/x",
            "//",
        ] {
            assert_eq!(get(unknown).unwrap_err().status, 404, "{unknown}");
        }
        let post = route(&Method::POST, &"/".parse().unwrap());
        assert_eq!(post.unwrap_err().status, 405);
    }
}
