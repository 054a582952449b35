//! Recordings made up for the tests of the HTML report, as the lines of a recording file (docs/recording.md).
//! The same on every run; shared by the unit tests and the tests in a browser.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// A name that would run if it were ever taken for markup.
pub const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"'`{{data}}<!--\u{202e}";

/// What the reader sees of [`HOSTILE`]: the character that would reorder the line is spelled out.
pub const HOSTILE_SHOWN: &str = "</script><img src=x onerror=alert(1)>\"'`{{data}}<!--\\u{202e}";

const START_NS: i64 = 1_763_710_523_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const INTERVAL_S: u64 = 5;

/// A frame: its function (empty where unknown), its module, its source file (empty where unknown).
type FrameOf<'a> = (&'a str, &'a str, &'a str);

/// What a stack holds in a snapshot: stack, bytes, bytes per allocation, age of the oldest in seconds.
type Held = (usize, u64, u64, u64);

/// The lines of a recording in the making.
struct Lines {
    text: String,
    modules: Vec<String>,
    stacks: usize,
}

impl Lines {
    fn new(target: &[&str], dated: bool) -> Lines {
        let mut header = json!({
            "type": "header", "format": "memleak-recording", "version": 1, "tool": "memleak 0.1.0",
            "command": ["memleak", "-p", "5193", "--record", "run.jsonl", "5", "240"],
            "host": {"name": "web-07", "kernel": "6.1.0-18-amd64", "machine": "x86_64"},
            "target": {"kind": "process", "pid": 5193, "command": target},
            "interval_ns": INTERVAL_S * SECOND_NS, "page_size": 4096,
        });
        if dated {
            header["started"] = json!({"unix_ns": START_NS, "utc_offset_s": 3600});
        }
        Lines {
            text: format!("{header}\n"),
            modules: Vec::new(),
            stacks: 0,
        }
    }

    fn module(&mut self, path: &str) -> usize {
        if let Some(known) = self.modules.iter().position(|module| module == path) {
            return known;
        }
        let id = self.modules.len();
        let build_id: String = path
            .bytes()
            .cycle()
            .take(20)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.line(&json!({"type": "module", "id": id, "path": path, "build_id": build_id}));
        self.modules.push(path.to_owned());
        id
    }

    fn frame(&mut self, (name, module, file): FrameOf<'_>) -> Value {
        let seed = name.bytes().fold(17_u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        let mut frame = json!({
            "address": format!("{:#x}", 0x5500_0000_0000 + seed % 0xff_ffff),
            "module": self.module(module),
            "file_offset": format!("{:#x}", seed % 0xff_ffff),
        });
        if !name.is_empty() {
            frame["symbol"] = json!(name);
            frame["symbol_offset"] = json!(seed % 0x400);
        }
        if !file.is_empty() {
            frame["file"] = json!(file);
            frame["line"] = json!(seed % 900 + 10);
        }
        frame
    }

    fn stack(&mut self, frames: &[FrameOf<'_>]) -> usize {
        let frames: Vec<Value> = frames.iter().map(|frame| self.frame(*frame)).collect();
        self.stack_of(&json!(frames))
    }

    fn stack_of(&mut self, frames: &Value) -> usize {
        let id = self.stacks;
        self.line(
            &json!({"type": "stack", "id": id, "tgid": 5193, "class": "heap", "frames": frames}),
        );
        self.stacks += 1;
        id
    }

    fn line(&mut self, value: &Value) {
        let _ = writeln!(self.text, "{value}");
    }

    /// The snapshot number `at`, with further fields in `more`.
    fn snapshot(&mut self, at: u64, held: &[Held], more: &[(&str, Value)]) {
        let elapsed = (at + 1) * INTERVAL_S * SECOND_NS;
        let column =
            |value: fn(&Held) -> u64| held.iter().map(value).map(Value::from).collect::<Vec<_>>();
        let mut line = json!({
            "type": "snapshot", "unix_ns": START_NS + elapsed as i64, "utc_offset_s": 3600, "elapsed_ns": elapsed,
            "reason": "interval",
            "stack": column(|held| held.0 as u64),
            "bytes": column(|held| held.1),
            "count": column(|held| held.1.div_ceil(held.2)),
            "oldest_ns": column(|held| held.3 * SECOND_NS),
        });
        for (name, value) in more {
            line[*name] = value.clone();
        }
        self.line(&line);
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

const ORDERD: &str = "/opt/orders/bin/orderd";
const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
const CRYPTO: &str = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3";
const PRICING: &str = "/opt/orders/plugins/libpricing.so";

const WORKER: [FrameOf<'_>; 4] = [
    (
        "orders::Server::handle_request(orders::Request const&)",
        ORDERD,
        "src/server.cc",
    ),
    ("orders::Worker::run()", ORDERD, "src/worker.cc"),
    ("start_thread", LIBC, ""),
    ("__clone3", LIBC, ""),
];

const MAIN: [FrameOf<'_>; 4] = [
    ("main", ORDERD, "src/main.cc"),
    ("__libc_start_call_main", LIBC, ""),
    ("__libc_start_main_impl", LIBC, ""),
    ("_start", ORDERD, ""),
];

/// A service over twenty minutes: a leak, a slower one, a cache that filled, a sawtooth, start-up memory, unknown and
/// hostile names, a stack that was not stored, a marked baseline, and some losses.
pub fn service() -> String {
    let mut lines = Lines::new(
        &[
            "/opt/orders/bin/orderd",
            "--config",
            "/etc/orders/orderd.toml",
            "--workers",
            "8",
        ],
        true,
    );
    service_stacks(&mut lines);
    let mut noise = Noise(42);
    for at in 0..240 {
        let mut held = service_figures(at, &mut noise);
        if at >= 238 {
            held.push((9, 777, 777, 5));
        }
        let mut more = vec![
            ("rss_bytes", json!(180_000_000 + at * 118_000)),
            ("headroom", json!({"bytes": 900_000_000, "limit": "cgroup"})),
            ("losses", json!({"stacks": at / 2, "unfollowed": at / 100})),
        ];
        if at == 60 {
            more.push(("reason", json!("mark")));
        }
        lines.snapshot(at, &held, &more);
    }
    lines.text
}

fn service_stacks(lines: &mut Lines) {
    let stacks: [(&[FrameOf<'_>], &[FrameOf<'_>]); 7] = [
        (
            &[
                ("strdup", LIBC, ""),
                ("pricing_quote_copy", PRICING, "quote.c"),
                ("pricing_lookup", PRICING, "lookup.c"),
            ],
            &WORKER,
        ),
        (
            &[(
                "orders::CatalogCache::load(std::filesystem::path const&)",
                ORDERD,
                "src/catalog.cc",
            )],
            &MAIN,
        ),
        (
            &[(
                "orders::Batch::reserve(unsigned long)",
                ORDERD,
                "src/batch.cc",
            )],
            &WORKER,
        ),
        (
            &[
                ("CRYPTO_zalloc", CRYPTO, ""),
                ("SSL_CTX_new_ex", CRYPTO, ""),
                ("orders::Tls::init()", ORDERD, "src/tls.cc"),
            ],
            &MAIN,
        ),
        (&[("", PRICING, ""), ("", PRICING, "")], &WORKER),
        (&[(HOSTILE, PRICING, "<b>evil</b>.c")], &MAIN),
        (
            &[(
                "orders::Config::parse(std::string_view)",
                ORDERD,
                "src/config.cc",
            )],
            &MAIN,
        ),
    ];
    let leak = leak_stack(lines);
    lines.stack_of(&leak);
    for (own, roots) in stacks {
        lines.stack(&[own, roots].concat());
    }
    lines.stack_of(&Value::Null);
    lines.stack(
        &[
            &[(
                "orders::Metrics::histogram(char const*)",
                ORDERD,
                "src/metrics.cc",
            )],
            &MAIN[..],
        ]
        .concat(),
    );
}

/// The leaking stack: its innermost frame holds two inlined functions, the first of them the allocator of C++.
fn leak_stack(lines: &mut Lines) -> Value {
    let mut leak = lines.frame((
        "orders::SessionCache::insert(orders::SessionId, orders::Session&&)",
        ORDERD,
        "src/session_cache.cc",
    ));
    leak["inlined"] = json!([
        {
            "symbol": "std::__new_allocator<std::_Rb_tree_node<std::pair<orders::SessionId const, orders::Session>>>::allocate(unsigned long, void const*)",
            "file": "/usr/include/c++/12/bits/new_allocator.h", "line": 137,
        },
        {"symbol": "orders::SessionCache::node_for(orders::SessionId)", "file": "src/session_cache.cc", "line": 88},
    ]);
    let roots = WORKER.map(|frame| lines.frame(frame));
    json!([&[leak][..], &roots[..]].concat())
}

fn service_figures(at: u64, noise: &mut Noise) -> Vec<Held> {
    let age = INTERVAL_S * (at + 1);
    vec![
        (0, 40_000 + at * 112_000 + noise.below(3_000), 208, age),
        (1, 800 + at * 1_550 + noise.below(900), 31, age),
        (2, (at * 900_000).clamp(1, 41_943_040), 65_536, age),
        (
            3,
            1_000_000 + (at % 30) * 400_000 + noise.below(200_000),
            100_000,
            150,
        ),
        (4, 1_400_000 + noise.below(2), 700, age),
        (5, 262_144, 4_096, age),
        (6, 90_000 - at * 98, 98, age),
        (7, 9_216, 48, age),
        (8, 12_288, 64, age),
    ]
}

/// A run of `snapshots` over `stacks`, each of thirty frames with the long names of generic C++ code; the first
/// three grow.
pub fn large(snapshots: u64, stacks: usize) -> String {
    let mut lines = Lines::new(&["/opt/large/bin/service"], true);
    let mut noise = Noise(7);
    let modules: Vec<String> = (0..40)
        .map(|at| format!("/usr/lib/x86_64-linux-gnu/libservice_component_{at}.so.1"))
        .collect();
    for stack in 0..stacks {
        let frames: Vec<Value> = (0..30)
            .map(|depth| {
                let name = if depth >= 26 { depth } else { (stack / 8 * 31 + depth * 7 + noise.below(3) as usize) % 6_000 };
                let symbol = format!("service::component_{}::Handler<service::Request<std::string, std::vector<unsigned char>>>::step_{name}(service::Context&)", name % 40);
                let mut frame = lines.frame((&symbol, &modules[name % 40], "src/service/component/handler.cc"));
                frame["address"] = json!(format!("{:#x}", 0x7f00_0000_0000 + (name as u64) * 4096 + noise.below(16)));
                frame
            })
            .collect();
        lines.stack_of(&json!(frames));
    }
    for at in 0..snapshots {
        large_snapshot(&mut lines, at, stacks, &mut noise);
    }
    lines.text
}

/// Written by hand: five thousand of these through a JSON value take too long.
fn large_snapshot(lines: &mut Lines, at: u64, stacks: usize, noise: &mut Noise) {
    let elapsed = (at + 1) * INTERVAL_S * SECOND_NS;
    let [mut stack, mut bytes, mut count] = [String::new(), String::new(), String::new()];
    for place in 0..stacks {
        let base = 1_000_000_000 / (place as u64 + 10);
        let grown = if place < 3 { at * 20_000 } else { 0 };
        let held = base + grown + noise.below(base / 4 + 1);
        let comma = if place == 0 { "" } else { "," };
        let _ = write!(stack, "{comma}{place}");
        let _ = write!(bytes, "{comma}{held}");
        let _ = write!(count, "{comma}{}", held / 100 + 1);
    }
    let _ = writeln!(
        lines.text,
        "{{\"type\":\"snapshot\",\"unix_ns\":{},\"elapsed_ns\":{elapsed},\"rss_bytes\":{},\"stack\":[{stack}],\"bytes\":[{bytes}],\"count\":[{count}]}}",
        START_NS + elapsed as i64,
        2_000_000_000 + at * 60_000,
    );
}

/// A command that had freed everything by its last snapshots.
pub fn clean() -> String {
    let mut lines = Lines::new(&["./tidy"], true);
    lines.stack(&[&[("load", ORDERD, "src/tidy.c")], &MAIN[..]].concat());
    for at in 0..12 {
        let held = [(0, 4096 * (at + 1), 64, at)];
        lines.snapshot(at, if at < 8 { &held } else { &[] }, &[]);
    }
    lines.text
}

/// As logs of other tools are read: two reports of the largest stacks, times of day without dates.
pub fn partial() -> String {
    let mut lines = Lines::new(&[], false);
    service_stacks(&mut lines);
    let mut noise = Noise(3);
    for at in 0..2 {
        let mut held = service_figures(at + 1, &mut noise);
        held.truncate(4);
        lines.snapshot(
            at,
            &held,
            &[("complete", json!(false)), ("oldest_ns", json!([]))],
        );
    }
    lines.text
}
