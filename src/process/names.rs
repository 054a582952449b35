//! Which names of processes the user wants: patterns as an automaton of bits that the BPF programs can run as well.
//! Knows nothing of processes.

/// Bits of a state.
const MOST_STATES: u32 = u64::BITS;

/// Patterns with `*` and `?`, of which one must match a whole name. Each state is a bit: that so many characters of a
/// pattern have been matched. It goes on to the next bit with the pattern's next character, and stays with any
/// character where a `*` comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The states before the first character.
    pub start: u64,
    /// The states that any character leaves as they are.
    pub loops: u64,
    /// The states in which a name that ends matches.
    pub accept: u64,
    /// By character, the states that it takes to the next one.
    pub steps: [u64; 256],
}

impl Names {
    /// The automaton for patterns. None when they are too long together: 64 characters, and one for each pattern.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut names = Self {
            start: 0,
            loops: 0,
            accept: 0,
            steps: [0; 256],
        };
        let mut state = 0;
        for pattern in patterns {
            state = names.add(pattern, state)?;
        }
        Some(names)
    }

    /// Adds a pattern whose first state is given; gives the first that it leaves free.
    fn add(&mut self, pattern: &str, first: u32) -> Option<u32> {
        let bit = |state: u32| (state < MOST_STATES).then(|| 1u64 << state);
        let mut state = first;
        self.start |= bit(state)?;
        for byte in pattern.bytes() {
            let here = bit(state)?;
            match byte {
                b'*' => self.loops |= here,
                b'?' => self.steps.iter_mut().for_each(|step| *step |= here),
                byte => self.steps[usize::from(byte)] |= here,
            }
            state += u32::from(byte != b'*');
        }
        self.accept |= bit(state)?;
        Some(state + 1)
    }

    /// Whether a name matches.
    pub fn match_name(&self, name: &str) -> bool {
        let states = name.bytes().fold(self.start, |states, byte| {
            (states & self.steps[usize::from(byte)]) << 1 | states & self.loops
        });
        states & self.accept != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching<'a>(patterns: &[&str], names: &[&'a str]) -> Vec<&'a str> {
        let automaton = Names::new(patterns.iter().copied()).unwrap();
        let matches = |name: &&&str| automaton.match_name(name);
        names.iter().filter(matches).copied().collect()
    }

    #[test]
    fn a_name_must_match_as_a_whole() {
        let names = ["nginx", "nginx2", "xnginx", "ngin", ""];
        assert_eq!(matching(&["nginx"], &names), ["nginx"]);
        assert_eq!(matching(&["nginx*"], &names), ["nginx", "nginx2"]);
        assert_eq!(matching(&["*nginx"], &names), ["nginx", "xnginx"]);
        assert_eq!(matching(&["ng?nx"], &names), ["nginx"]);
        assert_eq!(matching(&["*"], &names), names);
        assert_eq!(
            matching(&["**g*x**"], &names),
            ["nginx", "nginx2", "xnginx"]
        );
        assert_eq!(matching(&["?*"], &names).len(), 4);
    }

    #[test]
    fn one_of_several_patterns_is_enough_and_they_stay_apart() {
        let names = ["ab", "cd", "abcd", "a", "b", "bcd"];
        assert_eq!(matching(&["ab", "cd"], &names), ["ab", "cd"]);
        assert_eq!(matching(&["a*", "?cd"], &names), ["ab", "abcd", "a", "bcd"]);
    }

    #[test]
    fn a_star_tries_again_after_a_false_start() {
        assert_eq!(
            matching(&["*ab*ab"], &["aabab", "abab", "aab", "abaab"]),
            ["aabab", "abab", "abaab"]
        );
    }

    #[test]
    fn patterns_that_are_too_long_together_are_refused() {
        let long = "x".repeat(63);
        assert!(Names::new([long.as_str()]).is_some());
        assert!(Names::new([long.as_str(), ""]).is_none());
        assert!(Names::new(["x".repeat(64).as_str()]).is_none());
    }
}
