//! Where dynamic linkers tell debuggers that they change what is mapped. What follows from that is decided elsewhere.

use std::sync::Arc;

use super::Candidate;
use crate::files::Opened;
use crate::probes::Question;
use crate::reader;

/// The function that glibc's and musl's linkers call before and after they load or unload libraries.
const HOOK: &str = "_dl_debug_state";

/// The file of the dynamic linker among what a process maps, and the offset in it of the function that it calls for
/// debuggers' sake; none in a static program.
pub fn debug_hook(candidates: &[Candidate]) -> Option<(Arc<Opened>, u64)> {
    candidates
        .iter()
        .filter(|candidate| {
            let name = candidate.shown.file_name();
            // ld-linux-x86-64.so.2, ld-2.31.so, ld-musl-x86_64.so.1
            name.is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld"))
        })
        .find_map(|candidate| {
            let file = candidate.open().ok()?;
            let question = Question::places(&[HOOK]);
            let found = reader::functions(file.file(), None, question).ok()?;
            let offset = found.places.into_iter().next()??;
            Some((file, offset))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_of_this_machine_has_a_hook() {
        let candidates: Vec<Candidate> = crate::process::objects_of_command("/bin/true".as_ref())
            .unwrap()
            .into_iter()
            .map(Candidate::named)
            .collect();
        let (linker, offset) = debug_hook(&candidates).unwrap();
        let name = std::fs::read_link(linker.path()).unwrap();
        assert!(name.to_string_lossy().contains("/ld-"), "{name:?}");
        assert!(offset > 0);
        assert!(debug_hook(&candidates[..1]).is_none());
    }
}
