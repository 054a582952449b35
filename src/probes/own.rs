//! The user's own allocator functions, as `--alloc`, `--realloc` and `--free` describe them.
//! Text in, signatures out; which object has such a function is found out elsewhere.

use super::table::{Argument, Operation, Signature};

/// Arguments are read from registers, of which there are this many.
const MAX_ARGUMENT: Argument = 6;

/// A function that the user wants to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFunction {
    /// The option that names it, such as `--alloc`.
    pub option: &'static str,
    /// The object that has it, if the user says so: a path, or a library's short name such as `c`.
    pub object: Option<String>,
    /// Its name in the symbol table.
    pub name: String,
    /// How to read a call of it.
    pub signature: Signature,
}

impl OwnFunction {
    /// Understands `[OBJECT!]FUNCTION:KEY=VALUE,…`.
    ///
    /// # Errors
    /// One line that says what is wrong with the text, and what it should look like.
    pub fn parse(operation: Operation, text: &str) -> Result<Self, String> {
        let (option, example) = usage(operation);
        let parse = || -> Result<Self, String> {
            let (function, fields) = split(text).ok_or("no arguments are named")?;
            let (object, name) = match function.rsplit_once('!') {
                Some((object, name)) => (Some(object.trim()), name.trim()),
                None => (None, function.trim()),
            };
            if name.is_empty() || object.is_some_and(str::is_empty) {
                return Err("the name of a function or an object is missing".into());
            }
            Ok(Self {
                option,
                object: object.map(str::to_owned),
                name: name.to_owned(),
                signature: parse_fields(operation, fields)?,
            })
        };
        parse().map_err(|why| format!("{option} '{text}': {why} (such as {option} '{example}')"))
    }
}

/// The option for an operation, and how it is used.
fn usage(operation: Operation) -> (&'static str, &'static str) {
    match operation {
        Operation::Reallocate => ("--realloc", "pool_realloc:ptr=1,size=2"),
        Operation::Free => ("--free", "pool_free:ptr=1"),
        _ => ("--alloc", "pool_alloc:size=2"),
    }
}

/// Splits at the last colon, but for those of `=const:`: objects and functions may have colons in their names.
fn split(text: &str) -> Option<(&str, &str)> {
    let of_constant = |before: &str| {
        let key = before.trim_end().strip_suffix("const");
        key.is_some_and(|key| key.trim_end().ends_with('='))
    };
    let mut colons = text.rmatch_indices(':');
    let (colon, _) = colons.find(|(colon, _)| !of_constant(&text[..*colon]))?;
    let fields = &text[colon + 1..];
    fields.contains('=').then_some((&text[..colon], fields))
}

fn parse_fields(operation: Operation, fields: &str) -> Result<Signature, String> {
    let mut signature = Signature::new(operation);
    let mut seen: Vec<&str> = Vec::new();
    for field in fields.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("`{field}` is not KEY=VALUE"))?;
        let (key, value) = (key.trim(), value.trim());
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
        match (key, operation) {
            ("size", Operation::Allocate | Operation::Reallocate) => {
                parse_size(&mut signature, value)?;
            }
            ("ptr", Operation::Reallocate | Operation::Free) => {
                signature.block = Some(argument(value)?);
            }
            ("out", Operation::Allocate) => signature.out = Some(argument(value)?),
            _ => return Err(format!("{key} is unknown here")),
        }
    }
    let needed: &[&str] = match operation {
        Operation::Free => &["ptr"],
        Operation::Reallocate => &["ptr", "size"],
        _ => &["size"],
    };
    if let Some(missing) = needed.iter().find(|key| !seen.contains(key)) {
        return Err(format!("{missing} is missing"));
    }
    let pointer = signature.block.or(signature.out);
    if pointer.is_some() && (pointer == signature.size || pointer == signature.count) {
        return Err("one argument can't be both a pointer and a size".into());
    }
    Ok(signature)
}

/// `2`, `1*2` or `const:64`.
fn parse_size(signature: &mut Signature, value: &str) -> Result<(), String> {
    if let Some(constant) = value.strip_prefix("const:") {
        signature.constant_size = constant
            .parse()
            .ok()
            .filter(|size| *size > 0)
            .ok_or_else(|| format!("`{constant}` is not a number of bytes above 0"))?;
    } else if let Some((count, size)) = value.split_once('*') {
        signature.count = Some(argument(count.trim())?);
        signature.size = Some(argument(size.trim())?);
    } else {
        signature.size = Some(argument(value)?);
    }
    Ok(())
}

fn argument(text: &str) -> Result<Argument, String> {
    text.parse()
        .ok()
        .filter(|number| (1..=MAX_ARGUMENT).contains(number))
        .ok_or_else(|| format!("`{text}` is not the number of an argument, 1 to {MAX_ARGUMENT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alloc(text: &str) -> OwnFunction {
        OwnFunction::parse(Operation::Allocate, text).unwrap()
    }

    #[test]
    fn sizes_come_from_an_argument_two_or_none() {
        let function = alloc("pool_alloc:size=2");
        assert_eq!(
            (function.object, function.name.as_str()),
            (None, "pool_alloc")
        );
        assert_eq!(function.signature.size, Some(2));
        let function = alloc("obj_new:size=const:64");
        assert_eq!(function.name, "obj_new");
        assert_eq!(function.signature.size, None);
        assert_eq!(function.signature.constant_size, 64);
        let function = alloc("arena_calloc:size=1*2");
        assert_eq!(function.signature.count, Some(1));
        assert_eq!(function.signature.size, Some(2));
        let function = alloc("get:out=1,size=2");
        assert_eq!(function.signature.out, Some(1));
        assert_eq!(function.signature.size, Some(2));
        let function = alloc("get : size = const:9 , out = 1");
        assert_eq!(function.name, "get");
        assert_eq!(function.signature.out, Some(1));
        assert_eq!(function.signature.constant_size, 9);
    }

    #[test]
    fn blocks_are_resized_and_freed_by_an_argument() {
        let resize = "pool_realloc:ptr=1,size=2";
        let function = OwnFunction::parse(Operation::Reallocate, resize).unwrap();
        assert_eq!(function.option, "--realloc");
        assert_eq!(function.signature.operation, Operation::Reallocate);
        assert_eq!(function.signature.block, Some(1));
        assert_eq!(function.signature.size, Some(2));
        let function = OwnFunction::parse(Operation::Free, "pool_free:ptr=6").unwrap();
        assert_eq!(function.signature.block, Some(6));
    }

    #[test]
    fn an_object_may_go_before_the_function() {
        let function = alloc("libpool.so!pool_alloc:size=2");
        assert_eq!(function.object.as_deref(), Some("libpool.so"));
        let function = alloc("/a:b/x!y.so!ns::f:size=const:1");
        assert_eq!(function.object.as_deref(), Some("/a:b/x!y.so"));
        assert_eq!(function.name, "ns::f");
    }

    #[test]
    fn what_is_wrong_is_said() {
        use Operation::{Allocate, Free, Reallocate};
        for (operation, text, why) in [
            (Allocate, "pool_alloc", "no arguments are named"),
            (Allocate, "", "no arguments are named"),
            (Allocate, ":size=1", "name of a function"),
            (Allocate, "!f:size=1", "name of a function"),
            (Allocate, "x!:size=1", "name of a function"),
            (
                Allocate,
                "f:size=0",
                "`0` is not the number of an argument, 1 to 6",
            ),
            (
                Allocate,
                "f:size=7",
                "`7` is not the number of an argument, 1 to 6",
            ),
            (Allocate, "f:size=300", "`300` is not the number"),
            (Allocate, "f:size=1*", "`` is not the number"),
            (Allocate, "f:size=const:0", "`0` is not a number of bytes"),
            (Allocate, "f:size=const:x", "`x` is not a number of bytes"),
            (Allocate, "f:out=1", "size is missing"),
            (Allocate, "f:size=1,out=1", "both a pointer and a size"),
            (Allocate, "f:size=1,size=2", "size is given twice"),
            (Allocate, "f:ptr=1,size=2", "ptr is unknown here"),
            (Allocate, "f:size=1,", "`` is not KEY=VALUE"),
            (Reallocate, "f:size=1", "ptr is missing"),
            (Reallocate, "f:ptr=1", "size is missing"),
            (Reallocate, "f:ptr=2,size=1*2", "both a pointer and a size"),
            (Free, "f:size=1", "size is unknown here"),
        ] {
            let message = OwnFunction::parse(operation, text).unwrap_err();
            assert!(message.contains(why), "{text:?} gave: {message}");
            assert!(
                message.contains(usage(operation).0),
                "{text:?} gave: {message}"
            );
        }
    }
}
