//! How much the files of one user may take of what all traced processes share, so that nobody takes it from the others.
//! What there is to share is known to whoever asks.

use std::collections::HashMap;

/// What is shared, in whatever it is counted in: the files of root and of memleak's own user may take all of it, those
/// of any other user a quarter, and those of all other users together half.
#[derive(Clone, Debug)]
pub struct Quota {
    /// None where there is nobody to take anything from.
    capacity: Option<usize>,
    /// By the owner's user id, what the files of others than the trusted have taken.
    taken: HashMap<u32, usize>,
    /// The user whose files are trusted besides root's.
    own: u32,
}

impl Quota {
    /// Nothing is taken of `capacity`. `shared` tells whether there are others.
    pub fn new(capacity: usize, shared: bool) -> Self {
        Self {
            capacity: shared.then_some(capacity),
            taken: HashMap::new(),
            own: rustix::process::geteuid().as_raw(),
        }
    }

    /// How much more the files of a user may take, as long as there is so much.
    pub fn left(&self, owner: u32) -> usize {
        let Some(capacity) = self.capacity.filter(|_| !self.is_trusted(owner)) else {
            return usize::MAX;
        };
        let all = self.taken.values().sum();
        let of_owner = self.taken.get(&owner).copied().unwrap_or(0);
        (capacity / 2)
            .saturating_sub(all)
            .min((capacity / 4).saturating_sub(of_owner))
    }

    /// Notes what a user's file takes.
    pub fn take(&mut self, owner: u32, amount: usize) {
        if !self.is_trusted(owner) {
            *self.taken.entry(owner).or_default() += amount;
        }
    }

    /// Notes what is free again.
    pub fn give_back(&mut self, owner: u32, amount: usize) {
        if let Some(taken) = self.taken.get_mut(&owner) {
            *taken = taken.saturating_sub(amount);
        }
    }

    fn is_trusted(&self, owner: u32) -> bool {
        owner == 0 || owner == self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(shared: bool) -> Quota {
        Quota {
            own: 7,
            ..Quota::new(100, shared)
        }
    }

    #[test]
    fn nobody_takes_all_but_root_and_oneself() {
        let mut quota = quota(true);
        assert_eq!(
            [0, 7, 1000].map(|owner| quota.left(owner)),
            [usize::MAX, usize::MAX, 25]
        );
        quota.take(0, 90);
        quota.take(1000, 20);
        assert_eq!([1000, 1001].map(|owner| quota.left(owner)), [5, 25]);
        quota.take(1001, 25);
        assert_eq!([1000, 1001, 1002].map(|owner| quota.left(owner)), [5, 0, 5]);
        quota.give_back(1000, 20);
        assert_eq!([1000, 1002].map(|owner| quota.left(owner)), [25, 25]);
    }

    #[test]
    fn who_is_alone_may_take_all() {
        let mut quota = quota(false);
        quota.take(1000, 1000);
        assert_eq!(quota.left(1000), usize::MAX);
    }
}
