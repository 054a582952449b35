//! Recordings made up for the tests: a service with a slow leak, hostile names, a large run, an empty one.
//! Deterministic; nothing here is part of the program.

use std::path::PathBuf;
use std::sync::Arc;

use crate::analysis::growth::{Growth, Rate, StackGrowth, Verdict};
use crate::recording::model::*;
use crate::report::{Frame, Function, Location, Module};
use crate::snapshot::{Class, Losses, Turnover, WallTime};

/// A name that would run if it were ever taken for markup.
pub const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"'`{{data}}<!--\u{202e}";

const START: i64 = 1_763_710_523_000_000_000;
const SECOND: i64 = 1_000_000_000;

fn module(path: &str) -> Arc<Module> {
    Arc::new(Module {
        path: PathBuf::from(path),
        build_id: Some(path.bytes().cycle().take(20).collect()),
    })
}

fn function(name: &str, file: &str, line: u32) -> Function {
    Function {
        name: name.to_owned(),
        location: (!file.is_empty()).then(|| Location {
            file: PathBuf::from(file),
            line: Some(line),
        }),
    }
}

fn frame(name: &str, module: &Arc<Module>, file: &str) -> Frame {
    let seed = name.bytes().fold(17_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    Frame {
        address: 0x5500_0000_0000 + seed % 0xff_ffff,
        module: Some(Arc::clone(module)),
        file_offset: Some(seed % 0xff_ffff),
        function: (!name.is_empty()).then(|| function(name, file, (seed % 900) as u32 + 10)),
        function_offset: seed % 0x400,
        inlined: Vec::new(),
    }
}

fn record(frames: Option<Vec<Frame>>) -> StackRecord {
    StackRecord {
        tgid: 5193,
        class: Class::Heap,
        frames,
    }
}

/// A small generator of numbers that look random and are the same on every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn header() -> Header {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    Header {
        source: Source::Recording,
        tool: "memleak 0.1.0".to_owned(),
        command: words("memleak -p 5193 --record run.jsonl --html run.html 5 240"),
        host: Host {
            name: "web-07".to_owned(),
            kernel: "6.1.0-18-amd64".to_owned(),
            machine: "x86_64".to_owned(),
        },
        target: Target {
            kind: TargetKind::Process,
            pid: Some(5193),
            command: words("/opt/orders/bin/orderd --config /etc/orders/orderd.toml --workers 8"),
        },
        started: Some(time(-5 * SECOND)),
        interval_ns: Some(5_000_000_000),
        page_size: Some(4096),
    }
}

fn time(since_start: i64) -> WallTime {
    WallTime {
        unix_ns: START + since_start,
        utc_offset_s: 3600,
    }
}

fn figure(stack: usize, bytes: u64, size: u64, age_s: u64) -> Figure {
    Figure {
        stack: stack as u32,
        bytes,
        count: bytes.div_ceil(size),
        oldest_ns: Some(age_s * 1_000_000_000),
    }
}

/// A verdict as the analysis would give it, over all `points`.
fn growth(
    stack: usize,
    verdict: Verdict,
    rate: f64,
    points: usize,
    last_bytes: u64,
) -> StackGrowth {
    let growing = verdict == Verdict::Growing;
    StackGrowth {
        stack,
        growth: Growth {
            verdict,
            continuous: growing && stack == 0,
            rate: Some(Rate {
                bytes_per_s: rate,
                low: rate * 0.97 - 0.5,
                high: rate * 1.04 + 0.5,
            }),
            p_value: if growing { 1e-9 } else { 0.4 },
            points,
            span_ns: 5_000_000_000 * points as u64,
            first_bytes: 4096,
            last_bytes,
            exhausted_in_s: growing.then(|| 2e9 / rate),
        },
    }
}

/// A recording and what the analysis says of it.
pub struct Sample {
    pub recording: Recording,
    pub growth: Vec<StackGrowth>,
    pub notes: Vec<String>,
}

/// A service over twenty minutes: a slow leak, a slower one, caches that filled, a sawtooth, start-up memory,
/// unknown and hostile names, a stack that was not stored, and some losses.
pub fn service() -> Sample {
    let orderd = module("/opt/orders/bin/orderd");
    let libc = module("/usr/lib/x86_64-linux-gnu/libc.so.6");
    let crypto = module("/usr/lib/x86_64-linux-gnu/libcrypto.so.3");
    let plugin = module("/opt/orders/plugins/libpricing.so");
    let roots = [
        frame(
            "orders::Server::handle_request(orders::Request const&)",
            &orderd,
            "src/server.cc",
        ),
        frame("orders::Worker::run()", &orderd, "src/worker.cc"),
        frame("start_thread", &libc, ""),
        frame("__clone3", &libc, ""),
    ];
    let main = [
        frame("main", &orderd, "src/main.cc"),
        frame("__libc_start_call_main", &libc, ""),
        frame("__libc_start_main_impl", &libc, ""),
        frame("_start", &orderd, ""),
    ];
    let with = |frames: Vec<Frame>, roots: &[Frame]| {
        record(Some(
            frames.into_iter().chain(roots.iter().cloned()).collect(),
        ))
    };
    let mut inlined = frame(
        "orders::SessionCache::insert(orders::SessionId, orders::Session&&)",
        &orderd,
        "src/session_cache.cc",
    );
    inlined.inlined = vec![
        function(
            "std::__new_allocator<std::_Rb_tree_node<std::pair<orders::SessionId const, orders::Session>>>::allocate(unsigned long, void const*)",
            "/usr/include/c++/12/bits/new_allocator.h",
            137,
        ),
        function(
            "orders::SessionCache::node_for(orders::SessionId)",
            "src/session_cache.cc",
            88,
        ),
    ];
    let stacks = vec![
        with(vec![inlined], &roots),
        with(
            vec![
                frame("strdup", &libc, ""),
                frame("pricing_quote_copy", &plugin, "quote.c"),
                frame("pricing_lookup", &plugin, "lookup.c"),
            ],
            &roots,
        ),
        with(
            vec![frame(
                "orders::CatalogCache::load(std::filesystem::path const&)",
                &orderd,
                "src/catalog.cc",
            )],
            &main,
        ),
        with(
            vec![frame(
                "orders::Batch::reserve(unsigned long)",
                &orderd,
                "src/batch.cc",
            )],
            &roots,
        ),
        with(
            vec![
                frame("CRYPTO_zalloc", &crypto, ""),
                frame("SSL_CTX_new_ex", &crypto, ""),
                frame("orders::Tls::init()", &orderd, "src/tls.cc"),
            ],
            &main,
        ),
        with(vec![frame("", &plugin, ""), frame("", &plugin, "")], &roots),
        with(vec![frame(HOSTILE, &plugin, "<b>evil</b>.c")], &main),
        record(None),
        with(
            vec![frame(
                "orders::Config::parse(std::string_view)",
                &orderd,
                "src/config.cc",
            )],
            &main,
        ),
        with(
            vec![frame(
                "orders::Metrics::histogram(char const*)",
                &orderd,
                "src/metrics.cc",
            )],
            &main,
        ),
    ];
    let mut noise = Noise(42);
    let count = 240_u64;
    let snapshots = (0..count)
        .map(|at| service_snapshot(at, &mut noise))
        .collect();
    let points = count as usize;
    Sample {
        recording: Recording {
            header: header(),
            stacks,
            snapshots,
        },
        growth: vec![
            growth(0, Verdict::Growing, 22_400.0, points, 27_000_000),
            growth(1, Verdict::Growing, 310.0, points, 372_000),
            growth(2, Verdict::Plateau, 0.4, points, 41_943_040),
            growth(3, Verdict::Sawtooth, -12.0, points, 6_000_000),
            growth(4, Verdict::Plateau, 0.0, points, 1_400_000),
            growth(5, Verdict::Plateau, 0.0, points, 262_144),
            growth(6, Verdict::Shrinking, -4.0, points, 66_600),
            growth(7, Verdict::Plateau, 0.0, points, 12_288),
            growth(8, Verdict::Plateau, 0.0, points, 9_216),
            growth(9, Verdict::TooShort, 0.0, 2, 777),
        ],
        notes: vec!["2 stacks holding 1.20 MiB are hidden by suppressions.".to_owned()],
    }
}

fn service_snapshot(at: u64, noise: &mut Noise) -> SnapshotRecord {
    let age = 5 * at + 5;
    let filled = (at * 900_000).min(41_943_040);
    let figures = vec![
        figure(0, 40_000 + at * 112_000 + noise.below(3_000), 208, age),
        figure(1, 800 + at * 1_550 + noise.below(900), 31, age),
        figure(2, filled.max(1), 65_536, age),
        figure(
            3,
            1_000_000 + (at % 30) * 400_000 + noise.below(200_000),
            100_000,
            150,
        ),
        figure(4, 1_400_000 + noise.below(2), 700, age),
        figure(5, 262_144, 4_096, age),
        figure(6, 90_000 - at * 98, 98, age),
        figure(7, 12_288, 64, age),
        figure(8, 9_216, 48, age),
    ];
    let mut snapshot = SnapshotRecord {
        time: time(at as i64 * 5 * SECOND),
        rss_bytes: Some(180_000_000 + at * 118_000),
        headroom: Some(Headroom {
            bytes: 2_000_000_000,
            limit: Limit::Cgroup,
        }),
        figures,
        losses: Losses {
            stacks: at / 2,
            missed_frees: at / 100,
            ..Losses::default()
        },
        ..SnapshotRecord::default()
    };
    if at >= 238 {
        snapshot.figures.push(figure(9, 777, 777, 5));
    }
    snapshot.turnover = snapshot
        .figures
        .iter()
        .map(|figure| Turnover {
            allocated_bytes: figure.bytes * 5,
            allocated_count: figure.count * 5,
            freed_bytes: figure.bytes * 4,
            freed_count: figure.count * 4,
        })
        .collect();
    snapshot
}

/// A run of `snapshots` over `stacks`, each of some thirty frames with the long names of generic C++ code.
pub fn large(snapshots: usize, stacks: usize) -> Sample {
    let modules: Vec<_> = (0..40)
        .map(|at| {
            module(&format!(
                "/usr/lib/x86_64-linux-gnu/libservice_component_{at}.so.1"
            ))
        })
        .collect();
    let mut noise = Noise(7);
    let names: Vec<String> = (0..6_000)
        .map(|at| format!("service::component_{}::Handler<service::Request<std::string, std::vector<unsigned char>>>::step_{at}(service::Context&)", at % 40))
        .collect();
    let records = (0..stacks)
        .map(|stack| {
            let frames = (0..30)
                .map(|depth| {
                    let name = if depth >= 26 {
                        depth
                    } else {
                        (stack / 8 * 31 + depth * 7 + noise.below(3) as usize) % names.len()
                    };
                    let mut frame = frame(
                        &names[name],
                        &modules[name % 40],
                        "src/service/component/handler.cc",
                    );
                    frame.address += noise.below(16);
                    frame
                })
                .collect();
            record(Some(frames))
        })
        .collect();
    let snapshots: Vec<_> = (0..snapshots)
        .map(|at| SnapshotRecord {
            time: time(at as i64 * 5 * SECOND),
            figures: (0..stacks)
                .map(|stack| {
                    let base = 1_000_000_000 / (stack as u64 + 10);
                    let grown = if stack < 3 { at as u64 * 20_000 } else { 0 };
                    figure(
                        stack,
                        base + grown + noise.below(base / 4 + 1),
                        100,
                        at as u64 * 5,
                    )
                })
                .collect(),
            rss_bytes: Some(2_000_000_000 + at as u64 * 60_000),
            ..SnapshotRecord::default()
        })
        .collect();
    let points = snapshots.len();
    Sample {
        recording: Recording {
            header: header(),
            stacks: records,
            snapshots,
        },
        growth: (0..stacks)
            .map(|stack| {
                let verdict = if stack < 3 {
                    Verdict::Growing
                } else {
                    Verdict::Plateau
                };
                growth(
                    stack,
                    verdict,
                    if stack < 3 { 4_000.0 } else { 0.1 },
                    points,
                    1_000_000,
                )
            })
            .collect(),
        notes: Vec::new(),
    }
}

/// A command that freed everything.
pub fn clean() -> Sample {
    let mut sample = service();
    sample.recording.stacks.clear();
    sample.recording.snapshots.truncate(12);
    for snapshot in &mut sample.recording.snapshots {
        snapshot.figures.clear();
        snapshot.turnover.clear();
        snapshot.losses = Losses::default();
    }
    Sample {
        growth: Vec::new(),
        notes: Vec::new(),
        ..sample
    }
}

/// A log of another tool: two reports of a few stacks, no dates, no header.
pub fn foreign() -> Sample {
    let mut sample = service();
    sample.recording.header = Header {
        source: Source::MemleakPy,
        ..Header::default()
    };
    sample.recording.snapshots.truncate(2);
    for (at, snapshot) in sample.recording.snapshots.iter_mut().enumerate() {
        snapshot.time = WallTime {
            unix_ns: (40_583 + 5 * at as i64) * SECOND,
            utc_offset_s: 0,
        };
        snapshot.figures.retain(|figure| figure.stack < 4);
        snapshot.turnover.clear();
        snapshot.losses = Losses::default();
        (snapshot.rss_bytes, snapshot.headroom) = (None, None);
        snapshot
            .figures
            .iter_mut()
            .for_each(|figure| figure.oldest_ns = None);
    }
    for stack in &mut sample.growth {
        stack.growth.verdict = Verdict::TooShort;
        stack.growth.continuous = false;
    }
    Sample {
        notes: Vec::new(),
        ..sample
    }
}
