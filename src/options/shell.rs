//! What in a command is meant for a shell, which none reads: told from the text as it was typed.
//! How the command is split into words is a library's business.

/// Whether a first word sets a variable, as in `A=1 program`.
pub fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        let mut bytes = name.bytes();
        bytes
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// What to say of a command that has shell syntax outside of quotes: it is passed on as arguments.
pub fn hints(command: &str) -> Vec<String> {
    let Some(operator) = operator(command) else {
        return Vec::new();
    };
    vec![format!(
        "hint: no shell reads the command, so {operator} is an argument like others; to have one, \
         use -f -c \"sh -c '…'\""
    )]
}

/// The first operator of a shell's that stands outside of quotes as a word, or begins or ends one.
fn operator(command: &str) -> Option<&'static str> {
    const OPERATORS: [&str; 9] = ["&&", "||", "2>", ">>", ">", "<", "|", "&", "$("];
    unquoted(command).split_whitespace().find_map(|word| {
        OPERATORS
            .into_iter()
            .find(|operator| word.starts_with(operator) || word.ends_with("&") && *operator == "&")
    })
}

/// The text without what is quoted.
fn unquoted(command: &str) -> String {
    let mut text = String::new();
    let mut quote = None;
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None | Some('"'), '\\') => {
                letters.next();
                text.push('_');
            }
            (None, '\'' | '"') => {
                quote = Some(letter);
                text.push('_');
            }
            (Some(open), _) if open == letter => quote = None,
            (None, _) => text.push(letter),
            (Some(_), _) => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_before_a_program_are_told_from_programs() {
        assert!(is_assignment("A=1") && is_assignment("LD_PRELOAD=/x.so"));
        assert!(!is_assignment("prog") && !is_assignment("./a=b") && !is_assignment("=x"));
    }

    #[test]
    fn only_unquoted_operators_are_a_shells() {
        for (command, found) in [
            ("a > out", Some(">")),
            ("a >out", Some(">")),
            ("a 2>&1", Some("2>")),
            ("a && b", Some("&&")),
            ("a | b", Some("|")),
            ("a &", Some("&")),
            ("a $(b)", Some("$(")),
            ("sh -c 'a > b'", None),
            ("a \">\" b", None),
            ("a \\> b", None),
            ("a x=1 -I<none", None),
            ("find . -exec ls {} ;", None),
        ] {
            assert_eq!(operator(command), found, "{command}");
        }
    }
}
