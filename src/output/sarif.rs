//! SARIF 2.1.0, which code hosts show beside the source: a result for each function that grows or holds memory.
//! What a failure is, is decided by the gates.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::problem;
use crate::analysis::findings::Findings;
use crate::analysis::identity::short_id;
use crate::analysis::problems::{Kind, Problem};
use crate::visible::{Spelling, Visible};

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// Writes a log with one run. Source files below `root` are named relative to it.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(
    findings: &Findings,
    problems: &[Problem],
    root: &Path,
    out: &mut impl Write,
) -> io::Result<()> {
    let results: Vec<Value> = problem::listed(problems)
        .map(|problem| result(findings, problem, root))
        .collect();
    let rule = |kind: Kind, text: &str| {
        json!({
            "id": rule_id(kind),
            "shortDescription": { "text": text },
            "helpUri": "https://en.wikipedia.org/wiki/Memory_leak",
        })
    };
    let log = json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "memleak",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": [
                    rule(Kind::Growth, "Memory that this function allocates grows"),
                    rule(Kind::Outstanding, "Memory that this function allocated was not freed"),
                ],
            }},
            "columnKind": "utf16CodeUnits",
            "results": results,
        }],
    });
    serde_json::to_writer_pretty(Visible::new(&mut *out, Spelling::Json), &log)?;
    writeln!(out)
}

fn result(findings: &Findings, problem: &Problem, root: &Path) -> Value {
    let doubtful = findings.growth_is_doubtful();
    let title = problem::title(problem, doubtful);
    let text = format!("{title}: {}", problem::message(problem, &findings.report));
    let module = problem
        .culprit
        .as_ref()
        .and_then(|culprit| culprit.module.as_ref());
    let module = module.map(|module| module.name()).unwrap_or_default();
    let mut location = json!({
        "logicalLocations": [{
            "name": problem.function(),
            "fullyQualifiedName": format!("{module}!{}", problem.function()),
            "kind": "function",
        }],
    });
    if let Some((file, line)) = problem::file(problem, root) {
        let mut place = json!({ "artifactLocation": { "uri": uri(&file) } });
        if let Some(line) = line.filter(|line| *line > 0) {
            place["region"] = json!({ "startLine": line });
        }
        location["physicalLocation"] = place;
    }
    let rule = rule_id(problem.kind);
    json!({
        "ruleId": rule,
        "ruleIndex": problem.kind as usize,
        "level": match (problem.fails, problem.kind) {
            (true, _) => "error",
            (false, Kind::Growth) => "warning",
            (false, Kind::Outstanding) => "note",
        },
        "message": { "text": text },
        "locations": [location],
        "partialFingerprints": {
            "culprit/v1": short_id(&format!("{rule}\n{module}\n{}", problem.function())),
        },
        "properties": {
            "bytes": problem.bytes,
            "allocations": problem.count,
            "stacks": problem.stacks,
            "bytesPerSecond": problem.bytes_per_s,
        },
    })
}

fn rule_id(kind: Kind) -> &'static str {
    match kind {
        Kind::Growth => "growth",
        Kind::Outstanding => "outstanding",
    }
}

/// A path as a reference to a URI: absolute ones get a scheme, and what URIs cannot hold is escaped.
fn uri(path: &str) -> String {
    let mut uri = match path.starts_with('/') {
        true => "file://".to_owned(),
        false => String::new(),
    };
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' | b'+' => {
                uri.push(char::from(byte));
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri
}
