//! The rules of all loaded tables, each once, with numbers that hold across tables and go to others when no table uses
//! them any more. What a rule says is told in `unwind`.

use std::collections::HashMap;

use crate::unwind::Dictionary;

/// Numbers that there are.
pub const MOST_RULES: usize = 1 << 16;

/// The rules.
pub struct SharedRules {
    codes: Vec<u32>,
    numbers: HashMap<u32, u16>,
    /// By number, the tables that use the rule.
    users: Vec<u32>,
    free: Vec<u16>,
    changed: bool,
}

/// What has become of a table's rules.
pub struct Numbered {
    /// For each of the table's rules its number.
    pub numbers: Vec<u16>,
    /// How many were added.
    pub added: usize,
    /// How many there was no room for: they stand as unsupported.
    pub refused: usize,
}

impl SharedRules {
    /// Only those whose number is fixed.
    pub fn new() -> Self {
        let fixed = Dictionary::new();
        let codes = fixed.codes().to_vec();
        Self {
            numbers: (0..)
                .zip(&codes)
                .map(|(number, code)| (*code, number))
                .collect(),
            // never given away
            users: vec![1; codes.len()],
            codes,
            free: Vec::new(),
            changed: true,
        }
    }

    /// Numbers a table's rules, of which at most `most` may be new.
    pub fn add(&mut self, codes: &[u32], most: usize) -> Numbered {
        let mut numbered = Numbered {
            numbers: Vec::with_capacity(codes.len()),
            added: 0,
            refused: 0,
        };
        for &code in codes {
            let known = self.numbers.get(&code).copied();
            let number = known.or_else(|| {
                let number = (numbered.added < most).then(|| self.insert(code)).flatten();
                numbered.added += usize::from(number.is_some());
                numbered.refused += usize::from(number.is_none());
                number
            });
            let number = number.unwrap_or(Dictionary::UNSUPPORTED);
            self.users[usize::from(number)] += 1;
            numbered.numbers.push(number);
        }
        numbered
    }

    /// Takes back what [`SharedRules::add`] has given to a table that is used no more.
    pub fn remove(&mut self, numbers: &[u16]) {
        for &number in numbers {
            let index = usize::from(number);
            self.users[index] -= 1;
            if self.users[index] == 0 {
                self.numbers.remove(&self.codes[index]);
                self.free.push(number);
            }
        }
    }

    /// All rules, by number.
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// Rules that some table uses.
    pub fn count(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there are new ones since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn insert(&mut self, code: u32) -> Option<u16> {
        let number = match self.free.pop() {
            Some(number) => {
                self.codes[usize::from(number)] = code;
                number
            }
            None if self.codes.len() == MOST_RULES => return None,
            None => {
                self.codes.push(code);
                self.users.push(0);
                u16::try_from(self.codes.len() - 1).ok()?
            }
        };
        self.numbers.insert(code, number);
        self.changed = true;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rules_have_one_number_and_free_numbers_are_given_again() {
        let mut rules = SharedRules::new();
        assert!(rules.take_changed());
        let fixed = rules.codes().to_vec();
        let one = rules.add(&[fixed[0], fixed[1], 100, 200], 10);
        let other = rules.add(&[fixed[0], fixed[1], 200, 300], 10);
        assert_eq!(one.numbers, [0, 1, 2, 3]);
        assert_eq!(other.numbers, [0, 1, 3, 4]);
        assert_eq!((one.added, other.added), (2, 1));
        assert!(rules.take_changed() && !rules.take_changed());
        rules.remove(&one.numbers);
        assert_eq!(rules.count(), 4);
        assert_eq!(rules.add(&[400, 200], 10).numbers, [2, 3]);
        rules.remove(&other.numbers);
        assert_eq!(rules.codes()[..2], fixed);
    }

    #[test]
    fn rules_beyond_what_a_table_may_add_are_unsupported() {
        let mut rules = SharedRules::new();
        let numbered = rules.add(&[100, 200, 300], 2);
        assert_eq!(numbered.numbers, [2, 3, Dictionary::UNSUPPORTED]);
        assert_eq!((numbered.added, numbered.refused), (2, 1));
        rules.remove(&numbered.numbers);
        assert_eq!(
            rules.add(&[fixed_code(), 300], 1).numbers,
            [Dictionary::UNSUPPORTED, 3]
        );
    }

    fn fixed_code() -> u32 {
        Dictionary::new().codes()[usize::from(Dictionary::UNSUPPORTED)]
    }
}
