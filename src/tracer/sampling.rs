//! The arithmetic of sampling, both ways: the constants that the programs sample with, and what a recorded
//! allocation stands for. Pure.

use crate::model::capture::Sampling;

/// What a recorded allocation stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    /// Itself.
    One,
    /// This many of its kind.
    Fixed(f64),
    /// As many as were passed over for each of its size, at this many bytes between samples.
    PerByte(f64),
}

impl Weight {
    /// The weight that makes figures recorded with `sampling` unbiased.
    pub fn of(sampling: Sampling) -> Self {
        match sampling {
            Sampling::All => Weight::One,
            Sampling::Rate(rate) => Weight::Fixed(2f64.powi(32) / f64::from(threshold(rate))),
            Sampling::Bytes(mean) => Weight::PerByte(f64::from(mean)),
        }
    }

    /// How many allocations one recorded allocation of `size` bytes stands for.
    pub fn of_size(self, size: u64) -> f64 {
        match self {
            Weight::One => 1.0,
            Weight::Fixed(weight) => weight,
            // the chance that none of its bytes is a sample is e^(-size/mean)
            Weight::PerByte(mean) => -1.0 / (-(size.max(1) as f64) / mean).exp_m1(),
        }
    }
}

/// An allocation is recorded when a random u32 is below this. `rate` is at least 2.
pub fn threshold(rate: u32) -> u32 {
    u32::try_from((1u64 << 32) / u64::from(rate.max(2))).unwrap_or(u32::MAX)
}

/// The programs' `sample_distance` for a mean distance between samples in bytes.
pub fn distance(mean: u32) -> u64 {
    (f64::from(mean) * 16.0 * std::f64::consts::LN_2).round() as u64
}

/// The programs' `log2_table`.
pub fn log2_table() -> [u32; 257] {
    std::array::from_fn(|step| {
        ((1.0 + step as f64 / 256.0).log2() * f64::from(1 << 24)).round() as u32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_stands_for_itself_unless_sampled() {
        assert_eq!(Weight::of(Sampling::All).of_size(100), 1.0);
    }

    #[test]
    fn one_in_n_stands_for_n() {
        let weight = Weight::of(Sampling::Rate(100)).of_size(1);
        assert!((weight - 100.0).abs() < 1e-4, "{weight}");
    }

    #[test]
    fn small_allocations_stand_for_many_and_large_ones_for_themselves() {
        let weight = Weight::of(Sampling::Bytes(1 << 20));
        let small = weight.of_size(1024);
        assert!((small - 1024.5).abs() < 0.1, "{small}");
        let large = weight.of_size(64 << 20);
        assert!((large - 1.0).abs() < 1e-9, "{large}");
    }

    #[test]
    fn the_table_spans_one_octave() {
        let table = log2_table();
        assert_eq!((table[0], table[128], table[256]), (0, 9_814_042, 1 << 24));
    }
}
