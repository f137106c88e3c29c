//! The order in which training sees the images.
//!
//! Training reads one endless stream. Index k of it is position k mod n of
//! epoch k div n, and each epoch is a fresh permutation of the n images drawn
//! from (seed, epoch) alone. So what comes at k is a pure function of (seed, k):
//! resuming needs the count of images seen and nothing else, and neither batch
//! size nor thread count changes the order.

use crate::{Error, Result};

/// Increment of SplitMix64: 2^64 divided by the golden ratio, made odd.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// Keeps the permutations and the flips of one seed independent.
const ORDER_STREAM: u64 = 0x006F_7264_6572;
const FLIP_STREAM: u64 = 0x666C_6970;
const CROP_STREAM: u64 = 0x6372_6F70;

/// Output function of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64
/// bits in which every output bit depends on every input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The i-th independent 64-bit value of a stream.
fn hash(seed: u64, stream: u64, i: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN) ^ mix(stream)).wrapping_add(i.wrapping_mul(GOLDEN)))
}

/// SplitMix64 generator.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Uniform in 0..n without bias, n > 0 (Lemire 2019: multiply, and reject
    /// the few products that would be counted once too often).
    fn below(&mut self, n: u64) -> u64 {
        loop {
            let product = u128::from(self.next()) * u128::from(n);
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }
}

/// Maps stream indices to images. Holds one epoch's permutation (4 bytes per
/// image) and draws another only when the epoch changes.
#[derive(Debug, Clone)]
pub struct DataOrder {
    seed: u64,
    epoch: u64,
    order: Vec<u32>,
}

impl DataOrder {
    /// The order of `len` images.
    ///
    /// # Errors
    /// If `len` is zero or beyond 32 bits.
    pub fn new(len: usize, seed: u64) -> Result<DataOrder> {
        match u32::try_from(len) {
            Ok(0) => Err(Error::Data("cannot sample from no images".to_owned())),
            Ok(len) => Ok(DataOrder { seed, epoch: 0, order: permutation(len, seed, 0) }),
            Err(_) => Err(Error::Data(format!("{len} images are more than 32 bits can number"))),
        }
    }

    /// The image at index `k` of the stream.
    pub fn index(&mut self, k: u64) -> usize {
        let len = self.order.len() as u64;
        let epoch = k / len;
        if epoch != self.epoch {
            self.order = permutation(len as u32, self.seed, epoch);
            self.epoch = epoch;
        }
        self.order[(k % len) as usize] as usize
    }

    /// Whether the image at index `k` of the stream is mirrored, where flipping
    /// is on: a fair coin per index.
    pub fn flip(&self, k: u64) -> bool {
        hash(self.seed, FLIP_STREAM, k) >> 63 == 1
    }

    /// Three uniform numbers in 0..1 for the random crop of index `k`.
    pub fn crop(&self, k: u64) -> [f64; 3] {
        [0, 1, 2].map(|i| {
            let word = hash(self.seed, CROP_STREAM + i, k);
            (word >> 11) as f64 / (1u64 << 53) as f64
        })
    }
}

/// The order of an epoch: a Fisher-Yates shuffle of 0..len.
fn permutation(len: u32, seed: u64, epoch: u64) -> Vec<u32> {
    let mut rng = SplitMix64(hash(seed, ORDER_STREAM, epoch));
    let mut order: Vec<u32> = (0..len).collect();
    for i in (1..order.len()).rev() {
        let j = rng.below(i as u64 + 1) as usize;
        order.swap(i, j);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_matches_its_published_sequence() {
        // Seed 1234567, as printed by the authors' C program.
        let mut rng = SplitMix64(1_234_567);
        assert_eq!(rng.next(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn below_is_uniform() {
        let mut rng = SplitMix64(5);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[rng.below(6) as usize] += 1;
        }
        // Six standard deviations of a binomial(60000, 1/6).
        assert!(counts.iter().all(|c| c.abs_diff(10_000) < 550), "{counts:?}");
    }
}
