//! JUnit's XML, which CI systems show as tests: a case for each gate, with what failed it.
//! What a gate is, and whether it tripped, is decided in `analysis`.

use std::io::{self, Write};

use super::problem;
use crate::analysis::findings::Findings;
use crate::analysis::gate::{Gate, Tripped};
use crate::analysis::problems::{Kind, Problem};
use crate::visible;

/// Writes a suite of the gates that were asked for; without any, of none.
///
/// # Errors
/// Whatever `out` fails with.
pub fn write(
    gates: &[Gate],
    tripped: &[Tripped],
    findings: &Findings,
    problems: &[Problem],
    out: &mut impl Write,
) -> io::Result<()> {
    let mut distinct: Vec<Gate> = Vec::new();
    for gate in gates {
        if !distinct.contains(gate) {
            distinct.push(*gate);
        }
    }
    let (tests, failures) = (distinct.len(), tripped.len());
    writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    writeln!(
        out,
        r#"<testsuites name="memleak" tests="{tests}" failures="{failures}">"#
    )?;
    writeln!(
        out,
        r#"  <testsuite name="memleak" tests="{tests}" failures="{failures}" errors="0" skipped="0">"#
    )?;
    for gate in distinct {
        let name = xml(&gate.to_string());
        write!(out, r#"    <testcase classname="memleak" name="{name}""#)?;
        let Some(tripped) = tripped.iter().find(|tripped| tripped.gate == gate) else {
            writeln!(out, "/>")?;
            continue;
        };
        writeln!(out, ">")?;
        writeln!(
            out,
            r#"      <failure message="{}" type="{name}">"#,
            xml(&tripped.why)
        )?;
        for problem in problem::listed(problems).filter(|problem| concerns(gate, problem)) {
            let place = problem.culprit.as_ref().and_then(|culprit| culprit.place());
            let place = place.map_or(String::new(), |place| format!(" ({place})"));
            let title = problem::title(problem, findings.growth_is_doubtful());
            let message = problem::message(problem, &findings.report);
            writeln!(out, "{}", xml(&format!("{title}{place}: {message}")))?;
        }
        writeln!(out, "      </failure>\n    </testcase>")?;
    }
    writeln!(out, "  </testsuite>\n</testsuites>")
}

fn concerns(gate: Gate, problem: &Problem) -> bool {
    (gate == Gate::Growth) == (problem.kind == Kind::Growth)
}

/// Text that XML can hold, in elements and attributes.
fn xml(text: &str) -> String {
    visible::line(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
