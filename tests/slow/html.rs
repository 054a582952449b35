//! The HTML report as a person meets it: in a browser, with a mouse, a keyboard, a phone and a printer.
//! Needs Debian's chromium and chromium-driver. What the page's bytes promise is tested beside `output::html`.
//!
//! Set MEMLEAK_SCREENSHOTS to a directory to get pictures of the pages.

mod browser;
mod samples;

use std::path::{Path, PathBuf};
use std::process::Command;

use fantoccini::key::Key;
use serde_json::json;
use tempfile::TempDir;

use crate::support::process::Running;
use crate::support::{fixture, memleak, require_root};
use browser::{Tab, with_address, with_page};
use rustix::process::Signal;
use samples::HOSTILE_SHOWN;

/// The report of a recording, written by the program itself.
struct Report {
    directory: TempDir,
}

impl Report {
    fn of(recording: &str) -> Report {
        Report::with(recording, &[])
    }

    fn with(recording: &str, arguments: &[&str]) -> Report {
        let directory = tempfile::tempdir().expect("a directory for the report");
        let file = directory.path().join("run.jsonl");
        std::fs::write(&file, recording).expect("the recording is written");
        let report = Report { directory };
        let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
            .args([
                Path::new("report"),
                &file,
                Path::new("--html"),
                &report.page(),
            ])
            .args(arguments)
            .current_dir(report.directory.path())
            .output()
            .expect("memleak runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        report
    }

    fn page(&self) -> PathBuf {
        self.directory.path().join("report.html")
    }
}

#[test]
fn what_is_suppressed_is_nowhere_on_the_page_but_in_a_note() {
    let rules = tempfile::NamedTempFile::new().expect("a file for the rules");
    std::fs::write(rules.path(), "leak:orders::SessionCache\n").expect("the rules are written");
    let path = rules.path().to_str().expect("a path in UTF-8");
    let report = Report::with(&samples::service(), &["--suppressions", path]);
    let page = std::fs::read_to_string(report.page()).expect("the page is there");
    assert!(page.contains("One function is growing: <code>pricing_quote_copy</code>"));
    assert!(page.contains("suppressed by leak:orders::SessionCache"));
    let (_, rest) = page
        .split_once("<section id=\"growth\"")
        .expect("the alerts");
    assert!(!rest.contains("SessionCache::insert"));
}

#[tokio::test]
async fn the_live_page_shows_the_next_report_without_being_loaded_again() {
    require_root();
    let mut service = Running::spawn(&mut Command::new(fixture::c("service")));
    let mut command = memleak::command();
    let pid = service.pid().to_string();
    command.args(["-v", "-o", "0", "--listen", "0", "-p", &pid, memleak::NEVER]);
    let mut tracer = Running::spawn(&mut command);
    let prefix = "memleak: listening at ";
    let line = tracer.stderr_line("address", |line| line.starts_with(prefix));
    tracer.stderr_line("`armed` line", |line| line.starts_with("memleak: armed"));
    let mut round = move || {
        service.send("round");
        service.expect("done");
        tracer.signal(Signal::USR1);
        tracer.stdout_line("report", |line| line.contains("] Top "));
    };
    round();
    with_address(line[prefix.len()..].to_owned(), |tab| async move {
        let blocks =
            |count: u32| format!("document.querySelector('#blocks').textContent === '{count}'");
        tab.wait(&blocks(4)).await;
        tab.get("(window.loaded = 1)").await;
        round();
        tab.wait(&blocks(7)).await;
        assert_eq!(tab.get("window.loaded").await, json!(1));
        let text = tab.text("document.querySelector('main').textContent").await;
        assert!(text.contains("slow_leak"), "{text}");
    })
    .await;
}

/// The rows of the table that are there, as a JavaScript expression.
const ROWS: &str = "[...document.querySelectorAll('tr.row')]";

async fn titles(tab: &Tab) -> serde_json::Value {
    tab.get(&format!(
        "{ROWS}.map(row => row.querySelector('.row-title').textContent)"
    ))
    .await
}

/// How many different colours a canvas shows; 1 means that nothing was drawn.
fn colours(canvas: &str) -> String {
    format!(
        "(canvas => new Set(new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size)(document.querySelector('{canvas}'))"
    )
}

/// Something that changes whenever the picture on a canvas does.
fn picture(canvas: &str) -> String {
    format!("document.querySelector('{canvas}').toDataURL()")
}

#[tokio::test]
async fn the_charts_are_drawn_and_answer_to_hover_toggle_and_zoom() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        for chart in ["#chart-bytes canvas", "#chart-count canvas"] {
            tab.wait(&format!("{} > 8", colours(chart))).await;
        }
        tab.shot("service-light-1280").await;

        tab.get("document.querySelector('#trends').scrollIntoView()")
            .await;
        tab.hover("#chart-bytes .u-over", 0.5, 0.5).await;
        tab.wait("!document.querySelector('#tip').hidden").await;
        let tip = tab.text("document.querySelector('#tip').textContent").await;
        assert!(
            tip.contains("after the start") && tip.contains("All stacks"),
            "{tip}"
        );
        tab.shot_of_window("service-hover").await;

        let before = tab.text(&picture("#chart-bytes canvas")).await;
        tab.click("#legend .chip").await;
        tab.wait(
            "document.querySelector('#legend .chip').getAttribute('aria-pressed') === 'false'",
        )
        .await;
        tab.wait(&format!(
            "{} !== '{before}'",
            picture("#chart-bytes canvas")
        ))
        .await;

        let whole = tab
            .text("document.querySelector('#trend-range').textContent")
            .await;
        tab.drag("#chart-bytes .u-over", (0.25, 0.5), (0.5, 0.5))
            .await;
        tab.wait("!document.querySelector('#zoom-reset').disabled")
            .await;
        let part = tab
            .text("document.querySelector('#trend-range').textContent")
            .await;
        assert_ne!(whole, part);
        tab.click("#zoom-reset").await;
        tab.wait(&format!(
            "document.querySelector('#trend-range').textContent === '{whole}'"
        ))
        .await;
        tab.click("#zoom-in").await;
        tab.wait(&format!(
            "document.querySelector('#trend-range').textContent !== '{whole}'"
        ))
        .await;
    })
    .await;
}

#[tokio::test]
async fn the_charts_answer_to_the_keyboard() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        let arrows = char::from(Key::Left).to_string();
        tab.type_into("#chart-bytes", &arrows.repeat(3)).await;
        tab.wait("document.querySelector('#trend-readout').textContent.includes('All stacks')")
            .await;
        tab.type_into("#chart-bytes", "+").await;
        tab.wait("!document.querySelector('#zoom-reset').disabled")
            .await;
        tab.type_into("#chart-bytes", "0").await;
        tab.wait("document.querySelector('#zoom-reset').disabled")
            .await;
    })
    .await;
}

#[tokio::test]
async fn the_table_sorts_by_any_column_both_ways() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        let first = titles(&tab).await;
        assert_eq!(
            [&first[0], &first[1], &first[2]],
            [
                "orders::SessionCache::node_for",
                "pricing_quote_copy",
                "orders::CatalogCache::load"
            ],
            "growing first, then the largest"
        );
        tab.click("th[data-key=bytes] button").await;
        tab.wait("document.querySelector('th[data-key=bytes]').ariaSort === 'descending'")
            .await;
        assert_eq!(titles(&tab).await[0], "orders::CatalogCache::load");
        tab.click("th[data-key=count] button").await;
        tab.wait("document.querySelector('th[data-key=count]').ariaSort === 'descending'")
            .await;
        assert_eq!(titles(&tab).await[0], "orders::SessionCache::node_for");
        tab.click("th[data-key=count] button").await;
        tab.wait("document.querySelector('th[data-key=count]').ariaSort === 'ascending'")
            .await;
        assert_eq!(titles(&tab).await[0], "orders::Metrics::histogram");
        tab.click("th[data-key=slope] button").await;
        assert_eq!(titles(&tab).await[0], "orders::SessionCache::node_for");
        tab.click("th[data-key=title] button").await;
        assert_eq!(titles(&tab).await[0], HOSTILE_SHOWN);
        assert_eq!(
            tab.get("document.querySelectorAll('th[aria-sort]').length")
                .await,
            json!(1)
        );
    })
    .await;
}

#[tokio::test]
async fn the_filter_finds_functions_modules_and_files() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        for (words, titles_left) in [
            ("sessioncache", json!(["orders::SessionCache::node_for"])),
            ("libcrypto", json!(["SSL_CTX_new_ex"])),
            ("quote.c", json!(["pricing_quote_copy"])),
            ("worker pricing_l", json!(["pricing_quote_copy"])),
            ("no such function", json!([])),
        ] {
            tab.clear("#filter").await;
            tab.type_into("#filter", words).await;
            tab.wait(&format!("JSON.stringify({ROWS}.map(row => row.querySelector('.row-title').textContent)) === '{titles_left}'")).await;
        }
        tab.wait("!document.querySelector('#stack-empty').hidden").await;
        tab.clear("#filter").await;
        assert_eq!(titles(&tab).await.as_array().map(Vec::len), Some(10));

        tab.get("document.activeElement.blur()").await;
        tab.type_into("body", "/").await;
        tab.wait("document.activeElement.id === 'filter'").await;

        tab.click("#only-growing").await;
        tab.wait(&format!("{ROWS}.length === 2")).await;
        let status = tab.text("document.querySelector('#stack-status').textContent").await;
        assert!(status.starts_with("2 of 10 stacks"), "{status}");
    })
    .await;
}

#[tokio::test]
async fn a_row_opens_to_its_whole_stack_and_closes_again() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        tab.type_into("#filter", "SessionCache").await;
        tab.wait(&format!("{ROWS}.length === 1")).await;
        let enter = char::from(Key::Enter).to_string();
        tab.type_into("tr.row .row-name", &enter).await;
        tab.wait("document.querySelector('tr.detail')").await;
        let frames = tab.get("[...document.querySelectorAll('.frames .frame-name')].map(name => name.textContent)").await;
        let frames: Vec<&str> = frames.as_array().expect("frames").iter().filter_map(|name| name.as_str()).collect();
        assert_eq!(frames.len(), 7);
        assert!(frames[0].starts_with("std::__new_allocator<"), "{frames:?}");
        assert_eq!(frames[1], "orders::SessionCache::node_for(orders::SessionId)");
        assert!(frames[2].starts_with("orders::SessionCache::insert(orders::SessionId, orders::Session&&)+0x"));
        assert!(frames[6].starts_with("__clone3+0x"));
        assert_eq!(tab.get("document.querySelectorAll('.frames .inlined').length").await, json!(2));
        tab.shot("service-row-open").await;
        tab.click("tr.row .row-name").await;
        tab.wait("!document.querySelector('tr.detail')").await;
    })
    .await;
}

#[tokio::test]
async fn an_alert_leads_to_its_stack() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        let alerts = tab.get("[...document.querySelectorAll('.alert-name')].map(name => name.textContent)").await;
        assert_eq!(alerts, json!(["orders::SessionCache::node_for", "pricing_quote_copy"]));
        tab.type_into("#filter", "nothing has this name").await;
        tab.wait(&format!("{ROWS}.length === 0")).await;
        tab.click(".alert:nth-of-type(2) .button").await;
        tab.wait("document.activeElement.textContent.startsWith('pricing_quote_copy')").await;
        tab.wait("document.querySelector('tr.row.open + tr.detail .frames').textContent.includes('quote.c')").await;
    })
    .await;
}

#[tokio::test]
async fn the_flame_graph_is_drawn_searched_and_zoomed() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        tab.wait(&format!("{} > 8", colours("#flame-canvas"))).await;
        let before = tab.text(&picture("#flame-canvas")).await;
        tab.type_into("#flame-search", "sessioncache::insert").await;
        tab.wait(
            "document.querySelector('#flame-status').textContent.startsWith('1 frame matches')",
        )
        .await;
        tab.wait(&format!("{} !== '{before}'", picture("#flame-canvas")))
            .await;
        tab.shot("service-flame-search").await;
        let by_bytes = tab
            .text("document.querySelector('#flame-status').textContent")
            .await;
        tab.click("#flame-count").await;
        tab.wait("document.querySelector('#flame-status').textContent.includes('allocations')")
            .await;
        assert_ne!(
            by_bytes,
            tab.text("document.querySelector('#flame-status').textContent")
                .await
        );
        tab.clear("#flame-search").await;
        tab.type_into("#flame-search", "no such frame").await;
        tab.wait("document.querySelector('#flame-status').textContent === 'No frame matches.'")
            .await;
        tab.clear("#flame-search").await;

        // The second row holds the roots of the stacks.
        tab.click_at("#flame-canvas", 0.05, 0.2).await;
        tab.wait("!document.querySelector('#flame-reset').disabled")
            .await;
        let escape = char::from(Key::Escape).to_string();
        tab.type_into("#flame-canvas", &escape).await;
        tab.wait("document.querySelector('#flame-reset').disabled")
            .await;
        let down = char::from(Key::Down).to_string();
        tab.type_into("#flame-canvas", &down).await;
        tab.wait("document.querySelector('#flame-detail').textContent.startsWith('_start')")
            .await;
    })
    .await;
}

#[tokio::test]
async fn dark_and_light_follow_the_system_until_the_reader_chooses() {
    let report = Report::of(&samples::service());
    let address = format!("file://{}", report.page().display());
    with_page(report.page(), |tab| async move {
        let paper = "getComputedStyle(document.body).backgroundColor";
        tab.prefer("light").await;
        let light = tab.text(paper).await;
        let drawn_light = tab.text(&picture("#chart-bytes canvas")).await;
        tab.prefer("dark").await;
        tab.wait(&format!("{paper} !== '{light}'")).await;
        tab.wait(&format!(
            "{} !== '{drawn_light}'",
            picture("#chart-bytes canvas")
        ))
        .await;
        tab.shot("service-dark-1280").await;
        tab.click("#theme").await;
        tab.wait(&format!("{paper} === '{light}'")).await;
        tab.go(&address).await;
        assert_eq!(tab.text(paper).await, light, "the choice is remembered");
    })
    .await;
}

#[tokio::test]
async fn a_hostile_symbol_is_shown_and_does_nothing() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        tab.type_into("#filter", "onerror").await;
        tab.wait(&format!("{ROWS}.length === 1")).await;
        assert_eq!(titles(&tab).await, json!([HOSTILE_SHOWN]));
        tab.click("tr.row .row-name").await;
        tab.wait(
            "document.querySelector('tr.detail .frames').textContent.includes('<b>evil</b>.c')",
        )
        .await;
        tab.click("tr.detail .button:nth-of-type(2)").await;
        tab.wait(
            "document.querySelector('#flame-status').textContent.startsWith('1 frame matches')",
        )
        .await;
        tab.hover("#flame-canvas", 0.5, 0.9).await;
        assert_eq!(
            tab.get("document.querySelectorAll('img, b.evil, iframe, object').length")
                .await,
            json!(0)
        );
        assert!(!tab.shows_dialog().await);
    })
    .await;
}

#[tokio::test]
async fn a_phone_shows_all_of_it_without_scrolling_sideways() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        tab.be_a_phone(390, 844).await;
        tab.wait("innerWidth === 390").await;
        tab.wait("document.querySelector('#chart-bytes canvas').getBoundingClientRect().width < 380").await;
        tab.wait("document.scrollingElement.scrollWidth <= 390").await;
        tab.shot("service-light-390").await;
        tab.get("(select => { select.value = 'title'; select.dispatchEvent(new Event('change')); })(document.querySelector('#sort'))").await;
        tab.wait(&format!("{ROWS}[0].querySelector('.row-title').textContent.startsWith('</script>')")).await;
        tab.click("tr.row .row-name").await;
        tab.wait("document.querySelector('tr.detail')").await;
        assert_eq!(tab.get("document.scrollingElement.scrollWidth <= 390").await, json!(true));
        tab.prefer("dark").await;
        tab.shot("service-dark-390").await;
    })
    .await;
}

#[tokio::test]
async fn paper_gets_light_colours_and_the_screen_keeps_its_own() {
    let report = Report::of(&samples::service());
    with_page(report.page(), |tab| async move {
        tab.prefer("dark").await;
        let paper = tab.print().await;
        assert!(paper.starts_with(b"%PDF"));
        if let Some(directory) = std::env::var_os("MEMLEAK_SCREENSHOTS") {
            std::fs::write(Path::new(&directory).join("service.pdf"), &paper)
                .expect("the PDF is written");
        }
        tab.wait("!('theme' in document.documentElement.dataset)")
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_run_that_freed_everything_says_so() {
    let report = Report::of(&samples::clean());
    with_page(report.page(), |tab| async move {
        let headline = tab.text("document.querySelector('h1').textContent").await;
        assert_eq!(headline, "Nothing is outstanding.");
        tab.wait("!document.querySelector('#stack-empty').hidden")
            .await;
        tab.wait("document.querySelector('#flame-scroll .empty')")
            .await;
        tab.wait(&format!("{} > 4", colours("#chart-bytes canvas")))
            .await;
        tab.shot("clean").await;
    })
    .await;
}

#[tokio::test]
async fn a_partial_recording_without_dates_is_shown_as_what_it_is() {
    let report = Report::of(&samples::partial());
    with_page(report.page(), |tab| async move {
        let notes = tab
            .text("document.querySelector('.notes').textContent")
            .await;
        assert!(
            notes.contains("the top stacks of each report only"),
            "{notes}"
        );
        assert_eq!(titles(&tab).await.as_array().map(Vec::len), Some(4));
        tab.shot("partial").await;
    })
    .await;
}

#[tokio::test]
async fn a_large_run_stays_responsive() {
    let report = Report::of(&samples::large(5_000, 1_000));
    let size = std::fs::metadata(report.page())
        .expect("the page is there")
        .len();
    assert!(size < 10_000_000, "{size} bytes");
    with_page(report.page(), move |tab| async move {
        let opened = tab
            .get("performance.timing.loadEventEnd - performance.timing.navigationStart")
            .await;
        println!("{size} bytes, loaded in {opened} ms");
        let rows = tab
            .get(&format!("{ROWS}.length"))
            .await
            .as_u64()
            .expect("a number");
        assert!(rows < 200, "{rows} rows were made at once");
        tab.shot("large").await;
        for section in ["growth", "trends", "stacks", "flame", "losses", "run"] {
            tab.get("document.documentElement.style.scrollBehavior = 'auto'")
                .await;
            tab.click(&format!("nav a[href='#{section}']")).await;
            tab.wait(&format!(
                "(({{top, bottom}}) => top < innerHeight && bottom > 60)(document.querySelector('#{section} h2').getBoundingClientRect())"
            ))
            .await;
        }
        tab.click("#more").await;
        tab.wait(&format!("{ROWS}.length > {rows}")).await;
        tab.type_into("#filter", "step_77(").await;
        tab.wait(
            "document.querySelector('#stack-status').textContent.includes(' of 1,000 stacks')",
        )
        .await;
        tab.type_into("#flame-search", "step_77(").await;
        tab.wait("/match/.test(document.querySelector('#flame-status').textContent)")
            .await;
    })
    .await;
}
