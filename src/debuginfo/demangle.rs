//! Names of functions as people write them, from those that linkers know: of bounded length, whatever a file says.
//! Where names come from is told elsewhere.

use std::borrow::Cow;
use std::fmt::{self, Write};

use cpp_demangle::{BorrowedSymbol, DemangleOptions, Symbol};

use crate::limits;

/// What mangled names of C++ begin with. Without it, `f` would be a `float`.
const MANGLED: [&str; 3] = ["_Z", "__Z", "_GLOBAL_"];

/// What stands for the rest of a name.
const CUT: &str = "[cut]";

/// A name in the form of its language; as it is where it has none, or where that would be too long.
pub fn demangle(name: &str) -> String {
    if name.len() > limits::NAME {
        return bounded(name);
    }
    let mut text = Bounded::default();
    let demangled = match rustc_demangle::try_demangle(name) {
        Ok(rust) => write!(text, "{rust:#}").is_ok(),
        Err(_) if MANGLED.iter().any(|prefix| name.starts_with(prefix)) => {
            write_cpp(name, &mut text)
        }
        Err(_) => false,
    };
    match demangled {
        true => text.0,
        false => name.to_owned(),
    }
}

/// Writes a name of C++; without its parameters, where their types are beyond the demangler: those of templates such as
/// GCC's `std::make_shared` name what is no type by the letter of the ABI.
fn write_cpp(name: &str, text: &mut Bounded) -> bool {
    let options = DemangleOptions::new();
    if let Ok(symbol) = Symbol::new(name) {
        return symbol.structured_demangle(text, &options).is_ok();
    }
    let Ok((symbol, _)) = BorrowedSymbol::with_tail(name.as_bytes()) else {
        return false;
    };
    // the result's type may be what was misread
    let options = options.no_params().no_return_type();
    symbol.structured_demangle(text, &options).is_ok() && !text.0.is_empty()
}

/// A name, or as much of it as may be, and a word that there is more.
pub fn bounded(name: &str) -> String {
    if name.len() <= limits::NAME {
        return name.to_owned();
    }
    let most = limits::NAME - CUT.len();
    let end = (0..=most).rev().find(|end| name.is_char_boundary(*end));
    format!("{}{CUT}", &name[..end.unwrap_or(0)])
}

/// Text that takes no more than a name may have.
#[derive(Default)]
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > limits::NAME {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// The bytes of a path, or as many of them as may be.
pub fn bounded_bytes(path: &[u8]) -> Cow<'_, [u8]> {
    Cow::Borrowed(&path[..path.len().min(limits::NAME)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_their_languages_write_them() {
        for plain in ["main", "f", "i", ""] {
            assert_eq!(demangle(plain), plain);
        }
        assert_eq!(demangle("_ZN3foo3barEi"), "foo::bar(int)");
        assert_eq!(demangle("_ZN3foo3bar17h0123456789abcdefE"), "foo::bar");
        assert_eq!(demangle("_RNvC6_123foo3bar"), "123foo::bar");
        assert_eq!(demangle("_Zx"), "_Zx");
        // by GCC 12, in C++11 to 17
        let make_shared = "_ZSt11make_sharedIN3app7SessionEJRiEESt10shared_ptrINSt9enable_ifIXntsrSt8is_arrayIT_E5\
                           valueES6_E4typeEEDpOT0_";
        assert_eq!(
            demangle(make_shared),
            "std::make_shared<app::Session, int&>"
        );
    }

    /// Each template argument names the one before twice.
    #[test]
    fn names_that_grow_without_bound_stay_as_they_are() {
        let seq = |index: u32| char::from_digit(index, 36).unwrap().to_ascii_uppercase();
        let mut name = String::from("_Z1fI1aIiiE");
        for index in 1..30 {
            let last = seq(index);
            name.push_str(&format!("S0_IS{last}_S{last}_E"));
        }
        name.push_str("Evv");
        assert_eq!(demangle(&name), name);
    }

    #[test]
    fn long_names_are_cut() {
        let name = demangle(&"é".repeat(10_000));
        assert!(
            name.len() <= limits::NAME && name.ends_with("é[cut]"),
            "{}",
            name.len()
        );
        // too deep for anybody
        let deep = format!("_Z1f{}i", "P".repeat(3000));
        assert_eq!(demangle(&deep), deep);
    }
}
