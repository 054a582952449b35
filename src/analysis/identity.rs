//! What makes two stacks of different runs the same: their functions and modules, not their addresses.
//! Within one run, the tracer's own stack ids are better: see `recording::collect`.

use std::fmt::Write;

use crate::model::report::{Frame, Function};
use crate::model::snapshot::Class;

/// How much must agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Functions and modules: survives address randomization and code that moved.
    #[default]
    Function,
    /// Source lines (or offsets, where there are no lines) and inlined functions as well.
    Line,
}

/// A stack's identity across runs. Processes do not matter: their ids differ from run to run.
pub fn identity(class: Class, frames: Option<&[Frame]>, precision: Precision) -> String {
    let mut identity = class.name().to_owned();
    for frame in frames.unwrap_or_default() {
        if precision == Precision::Line {
            frame
                .inlined
                .iter()
                .for_each(|function| push_line(&mut identity, function, 0));
        }
        identity.push('\n');
        match (&frame.function, precision) {
            (Some(function), Precision::Function) => identity.push_str(plain_name(&function.name)),
            (Some(function), Precision::Line) => {
                push_line(&mut identity, function, frame.function_offset)
            }
            (None, _) => push_offset(&mut identity, frame),
        }
        if let (Some(_), Some(function), Precision::Function) =
            (frame.language, &frame.function, precision)
            && let Some(place) = &function.location
        {
            // every file has a function called <module>
            let _ = write!(identity, " {}", place.file.display());
        }
        identity.push('\t');
        if let Some(module) = &frame.module {
            identity.push_str(&module.name());
        }
    }
    identity
}

fn push_line(identity: &mut String, function: &Function, offset: u64) {
    identity.push_str(plain_name(&function.name));
    // Writing to a String cannot fail.
    let _ = match &function.location {
        Some(place) => write!(
            identity,
            " {}:{}",
            place.file.display(),
            place.line.unwrap_or(0)
        ),
        None => write!(identity, " +{offset:x}"),
    };
}

/// Without a name, the place in the module's file is the best there is; it survives address randomization at least.
fn push_offset(identity: &mut String, frame: &Frame) {
    let _ = match (frame.file_offset, &frame.module) {
        (Some(offset), Some(_)) => write!(identity, "@{offset:x}"),
        (None, Some(_)) => Ok(()),
        (_, None) => write!(identity, "?"),
    };
}

/// The identity as 16 hexadecimal digits, the same on every machine (FNV-1a).
pub fn short_id(identity: &str) -> String {
    let hash = identity
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}")
}

/// A function's name without what compilers append to it, which changes with the code around it: GCC's
/// `.constprop.0`, `.isra.0`, `.part.0` and `.cold`, LLVM's `.llvm.123`, and the hash of old Rust manglings.
pub fn plain_name(name: &str) -> &str {
    let suffixes = [
        ".constprop.",
        ".isra.",
        ".part.",
        ".cold",
        ".llvm.",
        ".lto_priv.",
    ];
    let end = suffixes
        .iter()
        .filter_map(|suffix| name.find(suffix))
        .min()
        .unwrap_or(name.len());
    let name = if end == 0 { name } else { &name[..end] };
    match name.rsplit_once("::h") {
        Some((path, hash))
            if hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()) =>
        {
            path
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::report::{Language, Location, Module};

    fn frame(address: u64, name: Option<&str>, module: &str, line: u32) -> Frame {
        let location = Some(Location {
            file: "a.c".into(),
            line: Some(line),
        });
        Frame {
            address,
            module: Some(Arc::new(Module {
                path: module.into(),
                build_id: None,
            })),
            file_offset: Some(address & 0xfff),
            function: name.map(|name| Function {
                name: name.into(),
                location,
            }),
            function_offset: address & 0xf,
            language: None,
            inlined: Vec::new(),
        }
    }

    fn same(a: Frame, b: Frame, precision: Precision) -> bool {
        let of = |frame| identity(Class::Heap, Some(&[frame]), precision);
        of(a) == of(b)
    }

    #[test]
    fn addresses_directories_and_lines_do_not_matter_by_function() {
        let (a, b) = (
            frame(0x1000, Some("f"), "/a/x.so", 1),
            frame(0x2345, Some("f"), "/b/x.so", 9),
        );
        assert!(same(a.clone(), b.clone(), Precision::Function));
        assert!(!same(a.clone(), b, Precision::Line));
        assert!(same(
            a.clone(),
            frame(0x99, Some("f"), "x.so", 1),
            Precision::Line
        ));
        assert!(!same(
            a.clone(),
            frame(0x1000, Some("g"), "/a/x.so", 1),
            Precision::Function
        ));
        assert!(!same(
            a,
            frame(0x1000, Some("f"), "/a/y.so", 1),
            Precision::Function
        ));
    }

    #[test]
    fn interpreted_functions_of_a_name_are_told_apart_by_their_files() {
        let of = |file: &str| {
            let mut frame = frame(0, Some("<module>"), "[python]", 1);
            frame.language = Some(Language::Python);
            if let Some(place) = frame.function.as_mut().and_then(|of| of.location.as_mut()) {
                place.file = file.into();
            }
            frame
        };
        assert!(same(of("a.py"), of("a.py"), Precision::Function));
        assert!(!same(of("a.py"), of("b.py"), Precision::Function));
    }

    #[test]
    fn frames_without_names_match_by_their_place_in_the_file() {
        assert!(same(
            frame(0x1234, None, "x", 1),
            frame(0x7234, None, "x", 1),
            Precision::Function
        ));
        assert!(!same(
            frame(0x1234, None, "x", 1),
            frame(0x7235, None, "x", 1),
            Precision::Function
        ));
    }

    #[test]
    fn what_compilers_append_is_ignored() {
        assert_eq!(plain_name("f.constprop.0.isra.2"), "f");
        assert_eq!(plain_name("f.cold"), "f");
        assert_eq!(plain_name("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(plain_name("a::here"), "a::here");
        assert_eq!(plain_name(".cold"), ".cold");
    }

    #[test]
    fn classes_and_lost_stacks_differ_and_ids_are_stable() {
        let heap = identity(Class::Heap, None, Precision::Function);
        assert_ne!(heap, identity(Class::Mmap, None, Precision::Function));
        assert_eq!(short_id("heap"), short_id(&heap));
        assert_eq!(short_id(""), "cbf29ce484222325");
    }
}
