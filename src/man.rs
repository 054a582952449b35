//! The manual pages: what the command line says of itself, and sections that it has no place for.
//! Which options there are is `cli`'s to say.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::cli::Arguments;

/// Sections of memleak(1) that follow its options, in roff.
const SECTIONS: &str = include_str!("man/sections.roff");

/// Writes memleak(1) and a page for each of its commands into a folder, which is made if need be.
///
/// # Errors
/// When a file can't be written.
pub fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("failed to make the folder {}", folder.display()))?;
    for (name, page) in pages()? {
        let path = folder.join(name);
        fs::write(&path, page).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// File names and contents.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = Arguments::command();
    root.build();
    let mut pages = Vec::new();
    let commands: Vec<Command> = root
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .cloned()
        .collect();
    for command in commands {
        let name = format!("memleak-{}", command.get_name());
        let page = page(&command.name(name.clone()).display_name(name.clone()), "")?;
        pages.push((format!("{name}.1"), page));
    }
    pages.push(("memleak.1".to_owned(), page(&root, SECTIONS)?));
    Ok(pages)
}

fn page(command: &Command, sections: &str) -> io::Result<Vec<u8>> {
    // what follows the help stands in sections of its own
    let man = Man::new(command.clone().after_help("").after_long_help(""));
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.get_subcommands().next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    text.write_all(sections.as_bytes())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_and_command_has_its_place() {
        let pages = pages().unwrap();
        let text = |name: &str| {
            let (_, page) = pages.iter().find(|(found, _)| found == name).unwrap();
            String::from_utf8(page.clone()).unwrap().replace('\\', "")
        };
        let main = text("memleak.1");
        for argument in Arguments::command().get_arguments() {
            if let Some(long) = argument.get_long() {
                assert!(main.contains(&format!("--{long}")), "{long}");
            }
        }
        for section in [
            "EXAMPLES",
            "EXIT STATUS",
            "SIGNALS",
            "FILES",
            "ENVIRONMENT",
            "LIMITS",
        ] {
            assert!(
                main.contains(&format!(".SH \"{section}\""))
                    || main.contains(&format!(".SH {section}")),
                "{section}"
            );
        }
        assert!(text("memleak-report.1").contains("--suppressions"));
        assert!(text("memleak-check.1").contains("--json"));
    }
}
