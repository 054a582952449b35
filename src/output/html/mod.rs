//! The HTML report: one self-contained file that a team can share, look at and print; it asks nothing of the network.
//! Puts the page together; what is on it is made in the folder beside, and nothing here judges figures.

mod alerts;
mod headline;
mod intern;
mod markup;
mod payload;
mod processes;
mod run;
mod select;
mod thin;
mod words;

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

pub use self::markup::escape;
use crate::analysis::blame::Blame;
use crate::analysis::groups::{Group, Together};
use crate::analysis::growth::StackGrowth;
use crate::model::run::Recording;

/// The page, with `{{name}}` where a part goes.
const TEMPLATE: &str = include_str!("assets/template.html");

/// Everything that gives the page its looks.
const STYLE: &str = concat!(
    "/* uPlot 1.6.32, MIT licence: see the script below */\n",
    include_str!("vendor/uplot.min.css"),
    "\n",
    include_str!("assets/page.css"),
    include_str!("assets/small.css"),
);

/// Runs before the page is drawn.
const THEME: &str = include_str!("assets/theme.js");

/// Everything else that runs, in one scope.
const SCRIPT: &str = concat!(
    "/*\n",
    include_str!("vendor/uplot.LICENSE"),
    "\n*/\n",
    include_str!("vendor/uplot.min.js"),
    "\n(() => {\n\"use strict\";\n",
    include_str!("assets/format.js"),
    include_str!("assets/dom.js"),
    include_str!("assets/report.js"),
    include_str!("assets/charts.js"),
    include_str!("assets/table.js"),
    include_str!("assets/flame.js"),
    include_str!("assets/main.js"),
    "})();\n",
);

/// What the page is about.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The figures, of a finished run or of one so far.
    pub recording: &'a Recording,
    /// What the analysis says of each stack, most severe first. Stacks that it leaves out have no verdict.
    pub growth: &'a [StackGrowth],
    /// What grows by who is to blame, most severe first.
    pub groups: &'a [Group],
    /// What all of that comes to.
    pub together: Together,
    /// Who is to blame for stacks.
    pub blame: &'a Blame,
    /// Sentences to show under the headline, such as what was suppressed or compared. Plain text.
    pub notes: &'a [String],
}

/// Writes the whole page. Fails only when `out` does.
pub fn write(page: &Page<'_>, out: &mut impl Write) -> io::Result<()> {
    let data = payload::json(page)?;
    let title = markup::title(page.recording);
    let mut rest = TEMPLATE;
    while let Some((before, after)) = rest.split_once("{{") {
        out.write_all(before.as_bytes())?;
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        let part = match name {
            "csp" => policy(),
            "generator" => markup::escape(concat!("memleak ", env!("CARGO_PKG_VERSION"))),
            "title" => markup::escape(&title),
            "style" => STYLE.to_owned(),
            "theme" => THEME.to_owned(),
            "certainty" => certainty(page).to_owned(),
            "headline" => headline::headline(page),
            "alerts" => alerts::alerts(page, &data.places),
            "processes-link" => processes::link(page).to_owned(),
            "processes" => processes::processes(page),
            "largest" => run::largest(page),
            "losses" => run::losses(page.recording),
            "run" => run::run(page.recording),
            "foot" => run::foot(),
            "data" => data.json.clone(),
            "script" => SCRIPT.to_owned(),
            _ => String::new(),
        };
        out.write_all(part.as_bytes())?;
        rest = after;
    }
    out.write_all(rest.as_bytes())
}

/// How sure growth is, as a class of the page: where it isn't, nothing is red.
fn certainty(page: &Page<'_>) -> &'static str {
    match run::last_losses(page.recording).may_lack_frees() {
        true => "doubtful",
        false => "certain",
    }
}

/// The content security policy: the page's own scripts and styles by their hash, and no request to anywhere.
fn policy() -> String {
    format!(
        "default-src 'none'; script-src {} {}; style-src {}; img-src data:; base-uri 'none'; form-action 'none'",
        hash(THEME),
        hash(SCRIPT),
        hash(STYLE)
    )
}

fn hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
#[path = "../../../tests/slow/html/samples.rs"]
mod samples;
#[cfg(test)]
mod tests;
