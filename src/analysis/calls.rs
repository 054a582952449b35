//! A stack as its reader sees it: calls, with inlined functions spelled out, and short names for them.
//! Which call is to blame is `blame`'s to say; nothing here knows figures.

use std::sync::Arc;

use crate::model::report::{Frame, Function, Location, Module};

/// One function on a stack, compiled or inlined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The function's name, where known.
    pub name: Option<&'a str>,
    /// The object that holds the code.
    pub module: Option<&'a Arc<Module>>,
    /// Where in the source the call stands.
    pub location: Option<&'a Location>,
    /// The return address.
    pub address: u64,
    /// Bytes from the function's beginning; for an unknown function, from the file's, where that is known.
    pub offset: Option<u64>,
    /// Whether it was inlined into the call that follows.
    pub inlined: bool,
}

impl Call<'_> {
    /// The name that headings and tables show: without parameters, and told apart by place where it is unknown.
    pub fn title(&self) -> String {
        if let Some(name) = self.name {
            return short(name);
        }
        match (self.module, self.offset) {
            (Some(module), Some(offset)) => {
                format!("[unknown] {}+0x{offset:x}", module.name())
            }
            (Some(module), None) => format!("[unknown] {}", module.name()),
            (None, _) => format!("[unknown] 0x{:x}", self.address),
        }
    }
}

/// All calls of a stack, innermost first.
pub fn calls(frames: &[Frame]) -> Vec<Call<'_>> {
    frames.iter().flat_map(calls_of_frame).collect()
}

fn calls_of_frame(frame: &Frame) -> impl Iterator<Item = Call<'_>> {
    let inlined = frame
        .inlined
        .iter()
        .map(|function| call(frame, Some(function), true));
    inlined.chain(std::iter::once(call(frame, frame.function.as_ref(), false)))
}

fn call<'a>(frame: &'a Frame, function: Option<&'a Function>, inlined: bool) -> Call<'a> {
    Call {
        name: function.map(|function| function.name.as_str()),
        module: frame.module.as_ref(),
        location: function.and_then(|function| function.location.as_ref()),
        address: frame.address,
        offset: match function {
            Some(_) => Some(frame.function_offset),
            None => frame.file_offset,
        },
        inlined,
    }
}

/// A demangled C++ name without its parameters and its result's type, and with longer template arguments left out:
/// `int a::f<std::string>(b)` gives `a::f<...>`. Other names stay whole.
pub fn short(name: &str) -> String {
    let mut shown = String::with_capacity(name.len());
    let mut depth = 0_usize;
    let mut at = 0;
    // where the name begins that parameters follow
    let mut begin = 0;
    let mut is_operator = false;
    while let Some(character) = name[at..].chars().next() {
        let rest = &name[at..];
        let mut taken = character.len_utf8();
        match character {
            'o' if rest.starts_with("operator") && !shown.ends_with(is_name) => {
                taken = operator_length(rest);
                is_operator = true;
            }
            '(' if rest.starts_with(ANONYMOUS) => taken = ANONYMOUS.len(),
            '(' if depth == 0 && shown.trim_end().ends_with("decltype") => {
                taken = parenthesis_length(rest);
            }
            '(' if depth == 0 && at > 0 => {
                shown.drain(..begin);
                break;
            }
            '<' if shown.ends_with(is_name) => {
                let arguments = bracket_length(rest);
                if arguments > LONGEST_ARGUMENTS {
                    shown.push_str("<...>");
                    at += arguments;
                    continue;
                }
                taken = arguments;
            }
            '<' | '{' => depth += 1,
            '>' | '}' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 && !is_operator => begin = shown.len() + 1,
            _ => {}
        }
        shown.push_str(&rest[..taken]);
        at += taken;
    }
    shown.truncate(shown.trim_end().len());
    shown
}

/// What C++ calls a namespace without a name.
const ANONYMOUS: &str = "(anonymous namespace)";

/// Bytes of template arguments, with their brackets, that a short name keeps.
const LONGEST_ARGUMENTS: usize = 14;

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Bytes up to the bracket that closes the first one, or the whole text where none does.
fn bracket_length(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut before = ' ';
    for (at, character) in text.char_indices() {
        match character {
            '<' => depth += 1,
            // The arrow of a function's result is no bracket.
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
        before = character;
    }
    text.len()
}

/// Bytes up to the parenthesis that closes the first one, or the whole text where none does.
fn parenthesis_length(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

/// Bytes of `operator` and the sign that follows it, which may look like brackets.
fn operator_length(name: &str) -> usize {
    let word = "operator".len();
    let sign = &name[word..];
    if sign.starts_with("()") {
        return word + 2;
    }
    let is_sign = |character: char| "<>=!+-*/%^&|~,[]".contains(character);
    word + sign
        .find(|character| !is_sign(character))
        .unwrap_or(sign.len())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;

    fn frame(name: Option<&str>, module: &str) -> Frame {
        Frame {
            language: None,
            address: 0x1000,
            module: Some(Arc::new(Module {
                path: PathBuf::from(module),
                build_id: None,
            })),
            file_offset: Some(0x20),
            function: name.map(function),
            function_offset: 4,
            inlined: Vec::new(),
        }
    }

    fn function(name: &str) -> Function {
        Function {
            name: name.to_owned(),
            location: None,
        }
    }

    #[test]
    fn inlined_functions_come_before_their_frame() {
        let mut outer = frame(Some("outer"), "/bin/app");
        outer.inlined = vec![function("innermost"), function("middle")];
        let stack = [outer];
        let names: Vec<_> = calls(&stack)
            .iter()
            .map(|call| (call.name, call.inlined))
            .collect();
        assert_eq!(
            names,
            [
                (Some("innermost"), true),
                (Some("middle"), true),
                (Some("outer"), false)
            ]
        );
    }

    #[test]
    fn short_names_end_where_parameters_begin() {
        let cases = [
            ("malloc", "malloc"),
            ("a::f(std::function<void (int)>) const", "a::f"),
            ("void a::g<void (*)(int)>(int)", "a::g<...>"),
            ("std::shared_ptr<T> a::make<T>(int)", "a::make<T>"),
            ("decltype (f()) a::call<int>(int)", "a::call<int>"),
            ("operator new(unsigned long)", "operator new"),
            (
                "a::T::operator unsigned long() const",
                "a::T::operator unsigned long",
            ),
            ("JS:*leak /app/server.js:5", "JS:*leak /app/server.js:5"),
            ("a::h<int>::i(b)", "a::h<int>::i"),
            ("a::k<std::map<int, std::string>, 3>::l()", "a::k<...>::l"),
            ("a::b<never closed(int)", "a::b<...>"),
            ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
            ("a::operator()(int) const", "a::operator()"),
            ("a::operator<<(int)", "a::operator<<"),
            ("a::operator-> ()", "a::operator->"),
            ("f(int)::{lambda(char)#1}::operator()(char) const", "f"),
            (
                "<alloc::vec::Vec<fn() -> T> as Clone>::clone",
                "<alloc::vec::Vec<fn() -> T> as Clone>::clone",
            ),
            ("ünïcode(x)", "ünïcode"),
            ("(", "("),
        ];
        for (name, expected) in cases {
            assert_eq!(short(name), expected);
        }
    }

    #[test]
    fn unknown_functions_are_told_apart_by_place() {
        let stack = [
            frame(None, "/opt/app/server"),
            Frame {
                address: 0xabc,
                ..Frame::default()
            },
        ];
        let titles: Vec<_> = calls(&stack).iter().map(Call::title).collect();
        assert_eq!(titles, ["[unknown] server+0x20", "[unknown] 0xabc"]);
    }
}
