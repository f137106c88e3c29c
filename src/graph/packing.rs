//! Packing of blocks with a lifetime into few bytes of buffers.
//!
//! A block takes one range of one buffer while it is alive. Blocks whose lives
//! overlap must not overlap in space, and *foes* must not even share a buffer.
//! Finding the least is NP-hard (dynamic storage allocation; without sharing of
//! buffers, max-colouring of intervals). What is done here: blocks are placed one
//! after the other, each in the tightest gap or where a buffer grows least. Which
//! comes first decides the result, so a few orders are tried and the best is
//! improved by "squeaky wheel" optimisation (Joslin and Clements, 1999): blocks
//! that made the total grow beyond the goal move forward in the queue.

use crate::rng::philox4x32;
use std::cmp::Reverse;

/// Something to place.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// First and last moment of its life.
    pub first: usize,
    /// See `first`.
    pub last: usize,
    /// Its size.
    pub bytes: u64,
    /// Blocks (by index) that may not lie in the same buffer at the same time.
    pub foes: Vec<u32>,
}

impl Block {
    fn meets(&self, other: &Block) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn life(&self) -> u64 {
        (self.last - self.first + 1) as u64
    }
}

/// Where everything lies.
#[derive(Debug, Clone, Default)]
pub(super) struct Packing {
    /// Bytes of each buffer.
    pub buffers: Vec<u64>,
    /// Buffer and offset of each block.
    pub places: Vec<(usize, u64)>,
    /// By how much each block made the sum of the buffers grow.
    grown: Vec<u64>,
}

impl Packing {
    pub fn total(&self) -> u64 {
        self.buffers.iter().sum()
    }
}

/// Largest sum of blocks alive at once: no packing can be smaller.
pub(super) fn live_peak(blocks: &[Block]) -> u64 {
    let moments = blocks.iter().map(|b| b.last + 2).max().unwrap_or(0);
    let mut change = vec![0i64; moments];
    for b in blocks {
        change[b.first] += b.bytes as i64;
        change[b.last + 1] -= b.bytes as i64;
    }
    let mut alive = 0;
    let peaks = change.iter().map(|c| {
        alive += c;
        alive
    });
    peaks.max().unwrap_or(0) as u64
}

/// Comparisons of two blocks that a search may make for a byte that it could save,
/// and in all: a fraction of a second.
const EFFORT_PER_BYTE: u64 = 16;
const EFFORT: u64 = 80_000_000;

/// Rounds without success after which a search returns to its best order.
const PATIENCE: u32 = 30;

/// Packs `blocks` into buffers of at most `limit` bytes (a larger block gets its own).
pub(super) fn pack(blocks: &[Block], limit: u64) -> Packing {
    let least = live_peak(blocks);
    let goal = least + least / 40;
    let orders = orders(blocks);
    let mut packer = Packer::new(blocks, limit);
    let mut best = packer.place(&orders[0], true);
    for (i, order) in orders.iter().enumerate() {
        for grow in [true, false] {
            if best.total() <= goal {
                return best;
            }
            if (i, grow) != (0, true) {
                let packing = packer.place(order, grow);
                if packing.total() < best.total() {
                    best = packing;
                }
            }
        }
    }
    if best.total() <= goal {
        return best;
    }
    let effort = (best.total() - goal).saturating_mul(EFFORT_PER_BYTE).min(EFFORT);
    let found = packer.search(&orders, goal, effort);
    if found.total() < best.total() { found } else { best }
}

/// Orders to begin with: by size, then by time, by length of life, and by both.
fn orders(blocks: &[Block]) -> [Vec<u32>; 3] {
    let ids: Vec<u32> = (0..blocks.len() as u32).collect();
    let by = |key: &dyn Fn(&Block) -> (Reverse<u64>, u64)| {
        let mut order = ids.clone();
        order.sort_by_cached_key(|i| key(&blocks[*i as usize]));
        order
    };
    [
        by(&|b| (Reverse(b.bytes), b.first as u64)),
        by(&|b| (Reverse(b.bytes), u64::MAX - b.life())),
        by(&|b| (Reverse(b.bytes.saturating_mul(b.life())), b.first as u64)),
    ]
}

struct Packer<'a> {
    blocks: &'a [Block],
    limit: u64,
    /// Whose foe a block was marked as last.
    marks: Vec<u32>,
    /// Comparisons made.
    effort: u64,
}

/// A way to place a block; the smallest is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Offer {
    growth: u64,
    gap: u64,
    buffer: usize,
    offset: u64,
}

impl<'a> Packer<'a> {
    fn new(blocks: &'a [Block], limit: u64) -> Self {
        Packer { blocks, limit, marks: vec![u32::MAX; blocks.len()], effort: 0 }
    }

    /// Places the blocks of `order` one after the other. Without `grow`, buffers
    /// keep the size of their first block.
    fn place(&mut self, order: &[u32], grow: bool) -> Packing {
        let count = self.blocks.len();
        let mut packing =
            Packing { buffers: Vec::new(), places: vec![(0, 0); count], grown: vec![0; count] };
        // Blocks of each buffer by offset.
        let mut tenants: Vec<Vec<(u64, u32)>> = Vec::new();
        self.marks.fill(u32::MAX);
        for i in order {
            let block = &self.blocks[*i as usize];
            for foe in &block.foes {
                self.marks[*foe as usize] = *i;
            }
            let fresh =
                Offer { growth: block.bytes, gap: 0, buffer: packing.buffers.len(), offset: 0 };
            let offers = tenants.iter().enumerate().filter_map(|(b, lodgers)| {
                self.effort += lodgers.len() as u64 + 4;
                let offer = self.offer(*i, lodgers, packing.buffers[b], grow)?;
                Some(Offer { buffer: b, ..offer })
            });
            let Offer { growth, buffer, offset, .. } = offers.fold(fresh, Offer::min);
            if buffer == packing.buffers.len() {
                packing.buffers.push(0);
                tenants.push(Vec::new());
            }
            let size = &mut packing.buffers[buffer];
            *size = (*size).max(offset + block.bytes);
            let lodgers = &mut tenants[buffer];
            let at = lodgers.partition_point(|t| t.0 <= offset);
            lodgers.insert(at, (offset, *i));
            packing.places[*i as usize] = (buffer, offset);
            packing.grown[*i as usize] = growth;
        }
        packing
    }

    /// The best place for block `i` in a buffer of `size` bytes, if it may lie there.
    fn offer(&self, i: u32, lodgers: &[(u64, u32)], size: u64, grow: bool) -> Option<Offer> {
        let block = &self.blocks[i as usize];
        let mut best: Option<Offer> = None;
        let mut end = 0;
        for (offset, other) in lodgers {
            let o = &self.blocks[*other as usize];
            if !block.meets(o) {
                continue;
            }
            if self.marks[*other as usize] == i {
                return None;
            }
            let gap = offset.saturating_sub(end);
            if gap >= block.bytes && best.is_none_or(|b| gap < b.gap) {
                best = Some(Offer { growth: 0, gap, buffer: 0, offset: end });
            }
            end = end.max(offset + o.bytes);
        }
        let top = end + block.bytes;
        let growth = top.saturating_sub(size);
        if growth == 0 {
            let gap = size - end;
            if best.is_none_or(|b| gap < b.gap) {
                best = Some(Offer { growth, gap, buffer: 0, offset: end });
            }
        } else if grow
            && best.is_none()
            // Without foes, one large buffer is as good as two, and later more of use.
            && (growth < block.bytes || block.foes.is_empty())
            && top <= self.limit
        {
            best = Some(Offer { growth, gap: 0, buffer: 0, offset: end });
        }
        best
    }

    /// Improves orders of the blocks that matter, until `goal` is reached or the
    /// effort is spent; the others are placed last.
    fn search(&mut self, orders: &[Vec<u32>], goal: u64, effort: u64) -> Packing {
        let blocks = self.blocks;
        let large = |i: &u32| blocks[*i as usize].bytes >= goal / 2000;
        let mut least = u64::MAX;
        let mut best: Vec<u32> = orders[0].clone();
        let begun = self.effort;
        let mut random = 0;
        for (turn, start) in orders.iter().enumerate() {
            let until = begun + effort / orders.len() as u64 * (turn + 1) as u64;
            let mut order: Vec<u32> = start.iter().copied().filter(large).collect();
            let mut kept = order.clone();
            let (mut local, mut waited) = (u64::MAX, 0);
            while self.effort < until && least > goal {
                let packing = self.place(&order, true);
                let total = packing.total();
                waited += 1;
                if total < local {
                    (local, waited) = (total, 0);
                    kept.clone_from(&order);
                }
                if total < least {
                    least = total;
                    best.clone_from(&order);
                }
                if waited < PATIENCE {
                    order = advance(&order, &packing.grown, goal, &mut random);
                } else {
                    waited = 0;
                    let packing = self.place(&kept, true);
                    order = advance(&kept, &packing.grown, goal, &mut random);
                }
            }
        }
        best.retain(large);
        best.extend(orders[1].iter().filter(|i| !large(i)));
        self.place(&best, true)
    }
}

/// Moves blocks that made the sum grow beyond `goal` to an earlier place, which a
/// counter decides.
fn advance(order: &[u32], grown: &[u64], goal: u64, random: &mut u32) -> Vec<u32> {
    let mut total = 0;
    let mut keyed: Vec<(usize, u32)> = Vec::with_capacity(order.len());
    for (at, i) in order.iter().enumerate() {
        let growth = grown[*i as usize];
        total += growth;
        let mut key = 2 * at + 1;
        if growth > 0 && total > goal {
            *random += 1;
            let word = philox4x32([*random, 0, 0, 0], [0, 0])[0];
            key = 2 * ((at as u64 * u64::from(word)) >> 32) as usize;
        }
        keyed.push((key, *i));
    }
    keyed.sort_by_key(|k| k.0);
    keyed.into_iter().map(|k| k.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first: usize, last: usize, bytes: u64, foes: &[u32]) -> Block {
        Block { first, last, bytes, foes: foes.to_vec() }
    }

    /// Overlapping lives lie apart, foes in different buffers, all in bounds.
    fn check(blocks: &[Block], packing: &Packing) {
        for (i, a) in blocks.iter().enumerate() {
            let (buffer, offset) = packing.places[i];
            assert!(offset + a.bytes <= packing.buffers[buffer], "{i} leaves its buffer");
            for (j, b) in blocks.iter().enumerate().filter(|(j, b)| *j != i && a.meets(b)) {
                let (other, at) = packing.places[j];
                let apart = offset + a.bytes <= at || at + b.bytes <= offset;
                assert!(buffer != other || apart, "{i} and {j} overlap");
                assert!(buffer != other || !a.foes.contains(&(j as u32)), "{i} and {j} are foes");
            }
        }
    }

    /// A chain like a network's: each block is made from the one before, and some live
    /// on until their mirror image, as skip connections do.
    fn chain(count: usize, seed: u32) -> Vec<Block> {
        let word = |i: usize, k: u32| philox4x32([i as u32, k, 0, 0], [seed, 1])[0];
        let mut blocks: Vec<Block> = (0..count)
            .map(|i| {
                let long = i < count / 2 && word(i, 0).is_multiple_of(3);
                let last = if long { count - i } else { i + 1 };
                block(i, last, u64::from(256 * (1 + word(i, 1) % 64)) << 8, &[])
            })
            .collect();
        for i in 1..count {
            blocks[i].foes.push(i as u32 - 1);
            blocks[i - 1].foes.push(i as u32);
        }
        blocks
    }

    #[test]
    fn packings_are_sound_and_the_same_each_time() {
        for seed in 0..12 {
            let blocks = chain(20 + 15 * seed as usize, seed);
            let packing = pack(&blocks, u64::MAX);
            check(&blocks, &packing);
            assert_eq!(packing.places, pack(&blocks, u64::MAX).places);
            assert!(packing.total() >= live_peak(&blocks));
            let tight = pack(&blocks, 1 << 18);
            check(&blocks, &tight);
            let largest = blocks.iter().map(|b| b.bytes).max().unwrap();
            assert!(tight.buffers.iter().all(|b| *b <= largest.max(1 << 18)));
        }
    }

    #[test]
    fn blocks_lie_side_by_side_up_to_the_limit() {
        let blocks = [block(0, 1, 10, &[]), block(2, 3, 8, &[]), block(2, 3, 6, &[])];
        assert_eq!(live_peak(&blocks), 14);
        assert_eq!(pack(&blocks, 100).buffers, [14]);
        assert_eq!(pack(&blocks, 10).buffers, [10, 6]);
        let foes = [block(0, 1, 10, &[]), block(2, 3, 8, &[2]), block(2, 3, 6, &[1])];
        assert_eq!(pack(&foes, 100).buffers, [10, 6]);
        assert!(pack(&[], 100).buffers.is_empty());
    }

    #[test]
    fn searching_improves_what_is_far_from_the_live_peak() {
        let mut searched = 0;
        for seed in 0..12 {
            let blocks = chain(120, seed);
            let mut packer = Packer::new(&blocks, u64::MAX);
            let first = orders(&blocks).map(|o| [true, false].map(|g| packer.place(&o, g).total()));
            let (first, least) = (*first.as_flattened().iter().min().unwrap(), live_peak(&blocks));
            let found = pack(&blocks, u64::MAX).total();
            if first > least + least / 40 {
                assert!(found < first, "chain {seed}: {found} bytes, {least} at least");
                searched += 1;
            }
        }
        assert!(searched >= 3);
    }
}
