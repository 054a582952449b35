//! The endpoints of a live run: an HTTP server in a thread of its own, which shows what it was handed last.
//! Never asks the tracer for anything, and waits for clients only; who may ask for what is `request`'s to say.

mod metrics;
mod page;
mod request;
mod site;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::analysis::Limits;
use crate::analysis::blame::Blame;
use crate::analysis::findings::Finding;
use crate::analysis::suspect::Suspicion;
use crate::model::report::Report;
use crate::model::run::{Header, Headroom};
use crate::model::snapshot::WallTime;
use crate::recording::collect::Moment;
use crate::stderr::say;
use request::{Origin, Refusal, Route};
use site::{Page, Site};

/// Connections at a time. One more ends the oldest: whoever holds many can't keep others out.
const MOST_CONNECTIONS: usize = 64;

/// From the first byte of a request to its last header, and from one request of a connection to the next.
const PATIENCE: Duration = Duration::from_secs(10);

/// From a connection's beginning to its end.
const LIFE: Duration = Duration::from_secs(request::MOST_SECONDS + 30);

/// Bytes of a request's headers, and of all that is read ahead.
const MOST_HEADER_BYTES: usize = 16 << 10;

/// Headers of a request.
const MOST_HEADERS: usize = 64;

/// Requests at a time that wait for a later report.
const MOST_WAITING: usize = 8;

/// How long a report is waited for beyond the time that was asked for.
const LATE: Duration = Duration::from_secs(20);

/// Until the next connection is accepted after one could not be: there may be too many open files.
const RECOVERY: Duration = Duration::from_millis(100);

/// What an endpoint is for, and who may use it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub address: SocketAddr,
    /// Names of this machine by which clients may ask, beside addresses and localhost.
    pub hosts: Vec<String>,
    /// How many functions of each process `/metrics` names.
    pub functions: usize,
    /// Who is to blame for stacks.
    pub blame: Blame,
    /// What the text report shows of each process, and of how many.
    pub limits: Limits,
}

/// A process that is looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessNow {
    /// Its id; 0 for the kernel.
    pub pid: u32,
    /// What it is called.
    pub comm: String,
    /// The container that it runs in, by id.
    pub container: Option<String>,
    /// Its resident memory in bytes.
    pub resident_bytes: Option<u64>,
    /// What it can still take.
    pub headroom: Option<Headroom>,
}

/// What `memleak watch` does.
#[derive(Clone, Debug, Default)]
pub struct WatchNow {
    /// Processes that are looked at.
    pub processes: u64,
    /// Processes that could not be looked at, as too many files are open.
    pub unseen: u64,
    /// Who grows, the strongest suspect first.
    pub suspects: Vec<(u32, Suspicion)>,
    /// Who is traced: its id and name.
    pub tracing: Option<(u32, String)>,
    /// Windows of tracing that came to their end.
    pub traced: u64,
    /// Windows that failed.
    pub failed: u64,
    /// Windows in which something was found.
    pub findings: u64,
    /// Traced processes that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// What is to be shown from now on.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Every stack with outstanding memory.
    pub report: Report,
    /// Its moment.
    pub moment: Moment,
    /// The living processes that it is about.
    pub processes: Vec<ProcessNow>,
    /// What grows, where that is not to be found out from one report to the next.
    pub growing: Option<Vec<Finding>>,
    /// Times that a probe was met.
    pub events: u64,
    /// Share of the CPU time that tracing takes, from 0 to 1.
    pub overhead: Option<f64>,
    /// What `memleak watch` does, if it is that.
    pub watch: Option<WatchNow>,
}

impl Update {
    /// Whether there was no report yet.
    fn is_empty(&self) -> bool {
        self.report.time == WallTime::default()
    }
}

/// The running server. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    updates: watch::Sender<Arc<Update>>,
}

impl Server {
    /// Listens, and serves what is published from a thread.
    ///
    /// # Errors
    /// When the address can't be listened at.
    pub fn start(settings: Settings, header: Header) -> Result<Server> {
        let address = settings.address;
        let failed = || format!("failed to listen at {address}");
        let listener = TcpListener::bind(address).with_context(failed)?;
        listener.set_nonblocking(true).with_context(failed)?;
        let address = listener.local_addr().with_context(failed)?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.with_context(failed)?;
        let (updates, news) = watch::channel(Arc::new(Update::default()));
        thread::Builder::new()
            .name("serve".to_owned())
            .spawn(move || serve(&runtime, listener, settings, header, news))
            .with_context(failed)?;
        say!("listening at http://{address}/");
        if !address.ip().is_loopback() {
            say!(
                "warning: whoever reaches {address} can read the names of processes, functions and files; \
                 without an address, only this machine can"
            );
        }
        Ok(Server { updates })
    }

    /// Shows this from now on. Never waits.
    pub fn publish(&self, update: Update) {
        self.updates.send_replace(Arc::new(update));
    }
}

/// What the tasks of the thread share.
struct Shared {
    site: RefCell<Site>,
    news: watch::Receiver<Arc<Update>>,
    hosts: Vec<String>,
    blame: Blame,
    waiting: Semaphore,
}

impl Shared {
    /// Sees to it that what was published last is what is shown.
    fn catch_up(&self) {
        let latest = Arc::clone(&self.news.borrow());
        self.site.borrow_mut().take(latest);
    }
}

fn serve(
    runtime: &Runtime,
    listener: TcpListener,
    settings: Settings,
    header: Header,
    news: watch::Receiver<Arc<Update>>,
) {
    let shared = Rc::new(Shared {
        hosts: settings.hosts.clone(),
        blame: settings.blame.clone(),
        site: RefCell::new(Site::new(Arc::clone(&news.borrow()), header, settings)),
        news: news.clone(),
        waiting: Semaphore::new(MOST_WAITING),
    });
    let tasks = LocalSet::new();
    tasks.spawn_local(accept(listener, Rc::clone(&shared)));
    // ends with the session, and all tasks with it
    tasks.block_on(runtime, take_news(&shared, news));
}

/// Takes each update in, until there will be none any more.
async fn take_news(shared: &Shared, mut news: watch::Receiver<Arc<Update>>) {
    while news.changed().await.is_ok() {
        news.borrow_and_update();
        shared.catch_up();
    }
}

async fn accept(listener: TcpListener, shared: Rc<Shared>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return say!("failed to listen: {error}"),
    };
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(RECOVERY).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= MOST_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        // what a client does not take is given up
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, PATIENCE.as_millis() as u32);
        let _ = stream.set_nodelay(true);
        let task = spawn_local(connection(stream, Rc::clone(&shared)));
        connections.push_back(task.abort_handle());
    }
}

async fn connection(stream: tokio::net::TcpStream, shared: Rc<Shared>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let shared = Rc::clone(&shared);
        async move { Ok::<_, io::Error>(respond(&shared, &request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    // a client's mistakes are the client's
    let _ = timeout(LIFE, connection).await;
}

async fn respond(shared: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let origin = Origin {
        hosts: &shared.hosts,
    };
    let route = match origin
        .check(request)
        .and_then(|()| request::route(request.method(), request.uri()))
    {
        Ok(route) => route,
        Err(refusal) => return refuse(&refusal),
    };
    let page = match route {
        Route::Delta { pid, seconds } => match delta(shared, pid, seconds).await {
            Ok(page) => Some(page),
            Err(refusal) => return refuse(&refusal),
        },
        Route::Now(format) => {
            shared.catch_up();
            shared
                .site
                .borrow_mut()
                .page(&format, open_metrics(request))
        }
    };
    match page {
        Some(page) => answer(&page, request),
        None => refuse(&Refusal::not_found()),
    }
}

/// What came to be outstanding within some seconds.
async fn delta(shared: &Shared, pid: Option<u32>, seconds: u64) -> Result<Page, Refusal> {
    let Ok(_waiting) = shared.waiting.try_acquire() else {
        return Err(Refusal::busy());
    };
    let mut news = shared.news.clone();
    if news.borrow_and_update().is_empty() {
        timeout(LATE, news.changed())
            .await
            .map_err(|_| Refusal::busy())?
            .map_err(|_| Refusal::busy())?;
    }
    let earlier = Arc::clone(&news.borrow_and_update());
    sleep(Duration::from_secs(seconds)).await;
    // the next report tells of all that time; where none comes soon, the last one does
    news.borrow_and_update();
    if let Ok(Err(_)) = timeout(LATE, news.changed()).await {
        return Err(Refusal::busy());
    }
    let later = Arc::clone(&news.borrow());
    Ok(site::delta(&earlier, &later, pid, seconds, &shared.blame))
}

/// Whether a client asks for OpenMetrics; all others get the older text that everybody reads.
fn open_metrics(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(header::ACCEPT);
    accept
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"))
}

fn answer(page: &Page, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let known = request.headers().get(header::IF_NONE_MATCH);
    let same = known
        .and_then(|known| known.to_str().ok())
        .is_some_and(|known| {
            let mut tags = known
                .split(',')
                .map(|tag| tag.trim().trim_start_matches("W/"));
            tags.any(|tag| tag == "*" || tag == page.tag)
        });
    let (status, body) = match same {
        true => (StatusCode::NOT_MODIFIED, Bytes::new()),
        false => (StatusCode::OK, page.body.clone()),
    };
    let mut response = response(status, body);
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    let values = [
        (header::ETAG, page.tag.as_str()),
        (header::CONTENT_TYPE, page.kind),
        (header::CONTENT_SECURITY_POLICY, page.policy.as_str()),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    if let Some(name) = page.file_name {
        let value = HeaderValue::from_static(name);
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    response
}

fn refuse(refusal: &Refusal) -> Response<Full<Bytes>> {
    let mut response = response(refusal.status, Bytes::from(refusal.why));
    let headers = response.headers_mut();
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// A response with what all have in common.
fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let values = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in values {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
