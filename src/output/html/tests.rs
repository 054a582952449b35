//! What the page promises about its bytes: nothing from outside is markup, its size is bounded, equal input gives
//! equal output. How it looks and behaves is tested in a browser, in `tests/slow/html.rs`.

use super::samples::{self, HOSTILE, HOSTILE_SHOWN};
use super::*;
use crate::analysis::findings::{Filter, Findings, findings};
use crate::model::losses::Losses;
use crate::recording::read::read;

/// A recording and what the analysis says of it.
struct Sample {
    recording: Recording,
    findings: Findings,
    notes: Vec<String>,
}

fn load(lines: &str) -> Sample {
    let sample = unjudged(lines);
    Sample {
        findings: findings(&sample.recording, &Filter::default(), &Blame::default()),
        ..sample
    }
}

/// Without verdicts, which take long for very many figures.
fn unjudged(lines: &str) -> Sample {
    let loaded = read(lines.as_bytes()).expect("the sample is a recording");
    Sample {
        recording: loaded.recording,
        findings: Findings::default(),
        notes: Vec::new(),
    }
}

fn page(sample: &Sample) -> String {
    let page = Page {
        recording: &sample.recording,
        growth: &sample.findings.verdicts,
        groups: &sample.findings.groups,
        together: sample.findings.together,
        blame: &Blame::default(),
        notes: &sample.notes,
    };
    let mut bytes = Vec::new();
    write(&page, &mut bytes).expect("a vector takes everything");
    String::from_utf8(bytes).expect("the page is UTF-8")
}

/// The page's data as the browser would read it.
fn data(page: &str) -> serde_json::Value {
    let (_, rest) = page
        .split_once("type=\"application/json\">")
        .expect("the data begins");
    let (json, _) = rest.split_once("</script>").expect("the data ends");
    serde_json::from_str(json).expect("the data is JSON")
}

#[test]
fn hostile_names_are_never_markup() {
    let page = page(&load(&samples::service()));
    assert!(!page.contains("<img"), "the name reached the markup");
    assert!(
        !page.contains("<b>evil"),
        "the file name reached the markup"
    );
    assert!(
        !page.contains('\u{202e}'),
        "a character that reorders lines reached the page"
    );
    let strings = data(&page)["strings"].to_string();
    let shown = serde_json::json!(HOSTILE_SHOWN).to_string();
    assert!(strings.contains(&shown), "the name is shown whole");
    assert!(
        HOSTILE.contains("{{data}}") && page.matches("application/json").count() == 1,
        "placeholders in names stay text"
    );
}

#[test]
fn headline_and_alerts_escape_what_they_name() {
    let mut sample = load(&samples::service());
    let worst = sample.findings.groups[0].culprit.as_mut();
    worst.expect("a culprit").function = HOSTILE.to_owned();
    sample.recording.header.target.command = vec![HOSTILE.to_owned()];
    sample.notes = vec![HOSTILE.to_owned()];
    let page = page(&sample);
    assert!(!page.contains("<img"));
    assert!(page.contains("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;"));
}

#[test]
fn scripts_cannot_end_early_and_match_the_policy() {
    for script in [SCRIPT, THEME] {
        assert!(!script.contains("</script") && !script.contains("<!--"));
    }
    assert!(!STYLE.contains("</style"));
    let page = page(&load(&samples::service()));
    let policy = policy();
    assert!(page.contains(&policy));
    assert_eq!(page.matches("<script").count(), 3, "theme, data, script");
    assert!(!policy.contains("unsafe") && policy.starts_with("default-src 'none'"));
    for address in ["src=\"http", "href=\"http", "@import", "url("] {
        assert!(!page.contains(address), "{address} would ask the network");
    }
}

#[test]
fn equal_input_gives_equal_bytes() {
    assert_eq!(
        page(&load(&samples::service())),
        page(&load(&samples::service()))
    );
}

#[test]
fn five_thousand_snapshots_of_a_thousand_stacks_stay_under_ten_megabytes() {
    let page = page(&unjudged(&samples::large(5_000, 1_000)));
    assert!(page.len() < 10_000_000, "{} bytes", page.len());
    let data = data(&page);
    assert_eq!(
        data["stacks"].as_array().map(Vec::len),
        Some(1_000),
        "all stacks are there"
    );
    assert!(
        data["times"]
            .as_array()
            .is_some_and(|times| times.len() <= 800)
    );
}

#[test]
fn ever_more_stacks_are_summed_up_instead_of_growing_the_page() {
    let sample = unjudged(&samples::large(2, 6_000));
    let page = page(&sample);
    assert!(page.len() < 10_000_000, "{} bytes", page.len());
    let data = data(&page);
    let kept = data["stacks"].as_array().expect("stacks");
    let sum: u64 = kept
        .iter()
        .filter_map(|stack| stack["bytes"].as_u64())
        .sum();
    let total = sum + data["other"]["bytes"].as_u64().expect("the rest");
    assert_eq!(
        kept.len() as u64 + data["other"]["stacks"].as_u64().expect("the rest"),
        6_000
    );
    assert_eq!(
        Some(total),
        sample
            .recording
            .snapshots
            .last()
            .map(|last| last.total_bytes())
    );
}

#[test]
fn a_recording_without_snapshots_makes_a_page() {
    let mut sample = load(&samples::clean());
    sample.recording.snapshots.clear();
    assert!(page(&sample).contains("Nothing was recorded."));
}

#[test]
fn figures_of_stacks_that_are_not_there_are_ignored() {
    let mut sample = load(&samples::service());
    sample.recording.stacks.truncate(3);
    sample.findings.verdicts[0].stack = 99;
    sample.findings.groups[0].stacks = vec![99];
    page(&sample);
}

#[test]
fn the_verdict_is_a_sentence() {
    let growing = page(&load(&samples::service()));
    let sentence =
        "2 functions are growing. The fastest, <code>orders::SessionCache::node_for</code>";
    assert!(growing.contains(sentence));
    assert!(
        growing.contains("in all the memory limit of its cgroup is used up in about 11 hours.")
    );
    let clean = page(&load(&samples::clean()));
    assert!(clean.contains("Nothing is outstanding.") && clean.contains("Nothing was lost."));
    let partial = page(&load(&samples::partial()));
    assert!(partial.contains("2 snapshots are too few to tell"));
    assert!(partial.contains("holds the top stacks of each report only"));
}

#[test]
fn growth_is_no_alarm_where_frees_may_be_missing() {
    let certain = page(&load(&samples::service()));
    assert!(certain.contains("tone-alert") && certain.contains("<body class=\"certain\">"));
    let losses: [fn(&mut Losses) -> &mut u64; 5] = [
        |losses| &mut losses.missed_frees,
        |losses| &mut losses.unseen_frees,
        |losses| &mut losses.events,
        |losses| &mut losses.threads,
        |losses| &mut losses.ranges,
    ];
    for loss in losses {
        let mut sample = load(&samples::service());
        let last = sample.recording.snapshots.last_mut().expect("a snapshot");
        *loss(&mut last.losses) = 1;
        let page = page(&sample);
        assert!(page.contains("2 functions may be growing. The fastest, "));
        assert!(page.contains("Frees were missed: what looks like growth may be none."));
        assert!(page.contains("<h2 id=\"growth-title\">What may be growing</h2>"));
        assert!(page.contains("<body class=\"doubtful\">"));
        assert!(page.contains("class=\"headline tone-unsure\""));
    }
}

#[test]
fn stacks_that_end_early_are_told_with_the_reasons() {
    let mut sample = load(&samples::service());
    let last = sample.recording.snapshots.last_mut();
    last.expect("a snapshot").losses.cut.depth = 3;
    let page = page(&sample);
    assert!(page.contains("3 stacks were cut short."));
    assert!(page.contains("3 at --perf-max-stack-depth. Bytes and counts are whole."));
}
