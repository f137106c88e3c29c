//! What the U-Net and the classifier have in common: the embedding, residual
//! and attention blocks, the encoder and the middle. Names and wiring are
//! those of guided-diffusion, so that parameters can move between systems.

use super::config::{GROUPS, Trunk};
use crate::Result;
use crate::graph::{FileLayout, Graph, TensorId};
use crate::ops::{
    AttentionOrder, Conv2d, GroupNorm, add, attention, conv2d, downsample2, dropout, group_norm,
    label_embedding, linear, silu, timestep_embedding, upsample2,
};

/// Change of resolution between levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resample {
    Up,
    Down,
}

/// Builds blocks of one network.
pub(super) struct Blocks<'a> {
    pub trunk: Trunk<'a>,
    /// SiLU of the timestep (and label) embedding [n, 4C], shared by all blocks.
    pub emb: TensorId,
    /// Random state of dropout; absent in inference.
    pub rng: Option<TensorId>,
}

/// The reference's group norm: 32 groups, eps 1e-5.
pub(super) fn norm(silu: bool) -> GroupNorm {
    GroupNorm { groups: GROUPS, eps: 1e-5, silu }
}

/// time_embed of the timesteps `t` `[n]` and, for labels `[n]` with their
/// number of rows, label_emb; then the SiLU with which every block begins.
pub(super) fn embedding(
    trunk: Trunk,
    g: &mut Graph,
    t: TensorId,
    labels: Option<(TensorId, usize)>,
) -> Result<TensorId> {
    let width = trunk.embedding();
    let mut emb = g.scope("time_embed", |g| {
        let h = timestep_embedding(g, t, trunk.model_channels)?;
        let h = g.scope("0", |g| linear(g, h, width))?;
        let h = silu(g, h)?;
        g.scope("2", |g| linear(g, h, width))
    })?;
    g.tap("time_embed", emb);
    if let Some((y, rows)) = labels {
        let label = g.scope("label_emb", |g| label_embedding(g, y, rows, width))?;
        emb = add(g, emb, label)?;
    }
    silu(g, emb)
}

impl Blocks<'_> {
    /// The encoder: the last feature map, and every block's output, the last
    /// included. Tapped as "input_blocks.i".
    pub fn input_blocks(&self, g: &mut Graph, x: TensorId) -> Result<(TensorId, Vec<TensorId>)> {
        let c = self.trunk;
        let mut outputs = Vec::new();
        let mut h = x;
        let mut block =
            |g: &mut Graph,
             h: &mut TensorId,
             build: &dyn Fn(&mut Graph, TensorId) -> Result<TensorId>| {
                let name = format!("input_blocks.{}", outputs.len());
                *h = g.scope(name.clone(), |g| build(g, *h))?;
                g.tap(name, *h);
                outputs.push(*h);
                Ok::<(), crate::Error>(())
            };
        block(g, &mut h, &|g, h| {
            g.scope("0", |g| conv2d(g, h, Conv2d::k3(c.channels(0)), None, None))
        })?;
        for level in 0..c.levels() {
            for _ in 0..c.num_res_blocks {
                block(g, &mut h, &|g, h| {
                    let h = self.res_block(g, "0", level, h, c.channels(level))?;
                    if c.attends(level) {
                        self.attention_block(g, "1", level, h, false)
                    } else {
                        Ok(h)
                    }
                })?;
            }
            if level + 1 < c.levels() {
                block(g, &mut h, &|g, h| self.resample(g, "0", level, h, Resample::Down))?;
            }
        }
        Ok((h, outputs))
    }

    /// Residual block, attention, residual block; tapped as "middle_block".
    pub fn middle(&self, g: &mut Graph, h: TensorId) -> Result<TensorId> {
        let level = self.trunk.levels() - 1;
        let channels = g.dims::<4>("model", h)?[3];
        let h = g.scope("middle_block", |g| {
            let h = self.res_block(g, "0", level, h, channels)?;
            let h = self.attention_block(g, "1", level, h, false)?;
            self.res_block(g, "2", level, h, channels)
        })?;
        g.tap("middle_block", h);
        Ok(h)
    }

    /// Between levels: a residual block that resamples, a convolution, or the
    /// bare nearest / average resampling. `level` is the larger of the two.
    pub fn resample(
        &self,
        g: &mut Graph,
        name: &str,
        level: usize,
        h: TensorId,
        how: Resample,
    ) -> Result<TensorId> {
        let channels = g.dims::<4>("model", h)?[3];
        if self.trunk.resblock_updown {
            let build = |g: &mut Graph| self.res_block_inner(g, h, channels, Some(how));
            return self.region(g, level, |g| g.scope(name, build));
        }
        g.scope(name, |g| match (how, self.trunk.conv_resample) {
            (Resample::Down, true) => {
                let options = Conv2d { stride: 2, ..Conv2d::k3(channels) };
                g.scope("op", |g| conv2d(g, h, options, None, None))
            }
            // A region, so that the doubled image need not be kept.
            (Resample::Up, true) => self.region(g, level, |g| {
                let h = upsample2(g, h)?;
                g.scope("conv", |g| conv2d(g, h, Conv2d::k3(channels), None, None))
            }),
            (how, false) => plain_resample(g, h, how),
        })
    }

    /// A residual block to `cout` channels at the same resolution.
    pub fn res_block(
        &self,
        g: &mut Graph,
        name: &str,
        level: usize,
        x: TensorId,
        cout: usize,
    ) -> Result<TensorId> {
        self.region(g, level, |g| g.scope(name, |g| self.res_block_inner(g, x, cout, None)))
    }

    fn res_block_inner(
        &self,
        g: &mut Graph,
        x: TensorId,
        cout: usize,
        resample: Option<Resample>,
    ) -> Result<TensorId> {
        let adaptive = self.trunk.use_scale_shift_norm;
        let cin = g.dims::<4>("model", x)?[3];
        let mut h = g.scope("in_layers.0", |g| group_norm(g, x, norm(true), None))?;
        let mut x = x;
        if let Some(how) = resample {
            h = plain_resample(g, h, how)?;
            x = plain_resample(g, x, how)?;
        }
        let width = if adaptive { 2 * cout } else { cout };
        let e = g.scope("emb_layers.1", |g| linear(g, self.emb, width))?;
        let added = (!adaptive).then_some(e);
        h = g.scope("in_layers.2", |g| conv2d(g, h, Conv2d::k3(cout), added, None))?;
        h = g.scope("out_layers.0", |g| group_norm(g, h, norm(true), adaptive.then_some(e)))?;
        if let Some(rng) = self.rng {
            h = g.scope("out_layers.2", |g| dropout(g, h, self.trunk.dropout, rng))?;
        }
        let skip = if cin == cout {
            x
        } else {
            g.scope("skip_connection", |g| conv2d(g, x, Conv2d::k1(cout), None, None))?
        };
        g.scope("out_layers.3", |g| conv2d(g, h, Conv2d::k3(cout).zeroed(), None, Some(skip)))
    }

    /// Group norm, self-attention over all positions, projection, residual.
    pub fn attention_block(
        &self,
        g: &mut Graph,
        name: &str,
        level: usize,
        x: TensorId,
        decoder: bool,
    ) -> Result<TensorId> {
        self.region(g, level, |g| g.scope(name, |g| self.attention_inner(g, x, decoder)))
    }

    fn attention_inner(&self, g: &mut Graph, x: TensorId, decoder: bool) -> Result<TensorId> {
        let channels = g.dims::<4>("model", x)?[3];
        let new = self.trunk.use_new_attention_order;
        let order = if new { AttentionOrder::New } else { AttentionOrder::Legacy };
        let h = g.scope("norm", |g| group_norm(g, x, norm(false), None))?;
        let qkv = g.scope("qkv", |g| conv2d(g, h, projection(3 * channels), None, None))?;
        let h = attention(g, qkv, self.trunk.heads(channels, decoder), order)?;
        g.scope("proj_out", |g| conv2d(g, h, projection(channels).zeroed(), None, Some(x)))
    }

    /// Makes what `build` appends a recomputation region, if the network or
    /// the graph asks for it at this level.
    pub fn region(
        &self,
        g: &mut Graph,
        level: usize,
        build: impl FnOnce(&mut Graph) -> Result<TensorId>,
    ) -> Result<TensorId> {
        let asked = self.trunk.use_checkpoint || g.recompute_levels >> level & 1 == 1;
        if asked { g.checkpoint(build) } else { build(g) }
    }
}

/// A 1x1 convolution that the reference stores as a Conv1d.
pub(super) fn projection(channels: usize) -> Conv2d {
    Conv2d { layout: FileLayout::Conv1d, ..Conv2d::k1(channels) }
}

fn plain_resample(g: &mut Graph, h: TensorId, how: Resample) -> Result<TensorId> {
    match how {
        Resample::Up => upsample2(g, h),
        Resample::Down => downsample2(g, h),
    }
}
