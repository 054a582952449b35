//! Every fuzz target over its corpus and over mutations of it, for a moment: what `make fuzz` does for minutes, with the
//! compiler's own checks of overflow. Which inputs are interesting is the corpus' matter.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/targets.rs"]
mod targets;

/// Mutations of each file of a corpus.
const MUTATIONS: u64 = 10_000;

/// Numbers that look random and are the same in every run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Changes a few places: bytes, numbers at the edges of their range, pieces that are repeated or left out.
fn mutate(data: &mut Vec<u8>, random: &mut Random) {
    const EDGES: [u64; 6] = [0, 1, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(5) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(data.len() - at);
                data[at..at + width].copy_from_slice(&edge[..width]);
            }
            2 => data.truncate(at),
            3 => {
                let end = at + random.below(data.len() - at);
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
            _ => data.insert(at, random.next() as u8),
        }
    }
}

#[test]
fn no_input_is_too_much_for_a_parser() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let files = fs::read_dir(corpus.join(name)).expect("every target has a corpus");
        let mut seeds: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        seeds.sort();
        assert!(!seeds.is_empty(), "{name}");
        for seed in seeds {
            let whole = fs::read(&seed).unwrap();
            target(&whole);
            for number in 0..MUTATIONS {
                let mut data = whole.clone();
                mutate(&mut data, &mut Random(number));
                target(&data);
            }
        }
        target(&[]);
    }
}

#[test]
fn every_target_is_built_by_cargo_fuzz() {
    let manifest = include_str!("../../fuzz/Cargo.toml");
    for (name, _) in targets::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
