//! The ADM U-Net, described once: from this graph come the inference and the
//! training plan. Names and wiring are those of guided-diffusion's
//! `UNetModel`, so that parameters can move between systems.

use super::config::{GROUPS, UNetConfig};
use crate::Result;
use crate::graph::{FileLayout, Graph, TensorId};
use crate::ops::{
    AttentionOrder, Conv2d, GroupNorm, add, attention, concat, conv2d, downsample2, dropout,
    group_norm, label_embedding, linear, silu, timestep_embedding, upsample2,
};

/// Change of resolution between levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resample {
    Up,
    Down,
}

struct UNet<'a> {
    config: &'a UNetConfig,
    /// SiLU of the timestep (and label) embedding [n, 4C], shared by all blocks.
    emb: TensorId,
    /// Random state of dropout; absent in inference.
    rng: Option<TensorId>,
}

/// What a U-Net is given.
#[derive(Debug, Clone, Copy)]
pub struct UNetInputs {
    /// The noisy image [n, h, w, in_channels].
    pub x: TensorId,
    /// The (possibly fractional) timestep `[n]`.
    pub t: TensorId,
    /// Class labels `[n]` of a conditional network.
    pub y: Option<TensorId>,
    /// The small image [n, s, s, in_channels] of a super-resolution network.
    pub low_res: Option<TensorId>,
    /// Random state of dropout (none in inference).
    pub rng: Option<TensorId>,
}

/// Appends the network to `g` and returns its output [n, h, w, out_channels]. Block outputs are tapped under the names
/// "time_embed", "input_blocks.i", "middle_block" and "output_blocks.i".
///
/// # Errors
/// [`crate::Error::Config`] for impossible options, [`crate::Error::Shape`]
/// for operands that do not fit.
pub fn build(config: &UNetConfig, g: &mut Graph, inputs: UNetInputs) -> Result<TensorId> {
    let UNetInputs { x, t, y, rng, .. } = inputs;
    config.validate()?;
    let emb = embedding(config, g, t, y)?;
    let net = UNet { config, emb, rng };
    let (mut h, mut skips) = net.encoder(g, x)?;
    h = g.scope("middle_block", |g| net.middle(g, h))?;
    g.tap("middle_block", h);
    h = net.decoder(g, h, &mut skips)?;
    g.scope("out", |g| {
        let h = g.scope("0", |g| group_norm(g, h, norm(true), None))?;
        g.scope("2", |g| conv2d(g, h, Conv2d::k3(config.out_channels).zeroed(), None, None))
    })
}

fn norm(silu: bool) -> GroupNorm {
    GroupNorm { groups: GROUPS, eps: 1e-5, silu }
}

/// time_embed and label_emb, then the SiLU with which every block begins.
fn embedding(
    config: &UNetConfig,
    g: &mut Graph,
    t: TensorId,
    y: Option<TensorId>,
) -> Result<TensorId> {
    let emb = g.scope("time_embed", |g| {
        let h = timestep_embedding(g, t, config.model_channels)?;
        let h = g.scope("0", |g| linear(g, h, config.embedding()))?;
        let h = silu(g, h)?;
        g.scope("2", |g| linear(g, h, config.embedding()))
    })?;
    g.tap("time_embed", emb);
    let emb = match (config.num_classes, y) {
        (Some(classes), Some(y)) => {
            let label =
                g.scope("label_emb", |g| label_embedding(g, y, classes, config.embedding()))?;
            add(g, emb, label)?
        }
        _ => emb,
    };
    silu(g, emb)
}

impl UNet<'_> {
    fn attends(&self, level: usize) -> bool {
        self.config.attention_resolutions.contains(&(1 << level))
    }

    fn encoder(&self, g: &mut Graph, x: TensorId) -> Result<(TensorId, Vec<TensorId>)> {
        let c = self.config;
        let mut skips = Vec::new();
        let mut h = x;
        let mut block =
            |g: &mut Graph,
             h: &mut TensorId,
             build: &dyn Fn(&mut Graph, TensorId) -> Result<TensorId>| {
                let name = format!("input_blocks.{}", skips.len());
                *h = g.scope(name.clone(), |g| build(g, *h))?;
                g.tap(name, *h);
                skips.push(*h);
                Ok::<(), crate::Error>(())
            };
        block(g, &mut h, &|g, h| {
            g.scope("0", |g| conv2d(g, h, Conv2d::k3(c.channels(0)), None, None))
        })?;
        for level in 0..c.channel_mult.len() {
            let channels = c.channels(level);
            for _ in 0..c.num_res_blocks {
                block(g, &mut h, &|g, h| {
                    let h = self.res_block(g, "0", h, channels, None)?;
                    if self.attends(level) { self.attention_block(g, "1", h, false) } else { Ok(h) }
                })?;
            }
            if level + 1 < c.channel_mult.len() {
                block(g, &mut h, &|g, h| self.resample(g, "0", h, Resample::Down))?;
            }
        }
        Ok((h, skips))
    }

    fn middle(&self, g: &mut Graph, h: TensorId) -> Result<TensorId> {
        let channels = g.dims::<4>("unet", h)?[3];
        let h = self.res_block(g, "0", h, channels, None)?;
        let h = self.attention_block(g, "1", h, false)?;
        self.res_block(g, "2", h, channels, None)
    }

    fn decoder(
        &self,
        g: &mut Graph,
        mut h: TensorId,
        skips: &mut Vec<TensorId>,
    ) -> Result<TensorId> {
        let c = self.config;
        let mut index = 0;
        for level in (0..c.channel_mult.len()).rev() {
            for i in 0..=c.num_res_blocks {
                let Some(skip) = skips.pop() else { continue };
                let name = format!("output_blocks.{index}");
                h = g.scope(name.clone(), |g| {
                    let h = concat(g, h, skip)?;
                    let mut h = self.res_block(g, "0", h, c.channels(level), None)?;
                    let mut next = 1;
                    if self.attends(level) {
                        h = self.attention_block(g, "1", h, true)?;
                        next = 2;
                    }
                    if level > 0 && i == c.num_res_blocks {
                        h = self.resample(g, &next.to_string(), h, Resample::Up)?;
                    }
                    Ok::<_, crate::Error>(h)
                })?;
                g.tap(name, h);
                index += 1;
            }
        }
        Ok(h)
    }

    /// Between levels: a residual block that resamples, a convolution, or
    /// the bare nearest / average resampling.
    fn resample(&self, g: &mut Graph, name: &str, h: TensorId, how: Resample) -> Result<TensorId> {
        let channels = g.dims::<4>("unet", h)?[3];
        if self.config.resblock_updown {
            return self.res_block(g, name, h, channels, Some(how));
        }
        g.scope(name, |g| match (how, self.config.conv_resample) {
            (Resample::Down, true) => {
                let options = Conv2d { stride: 2, ..Conv2d::k3(channels) };
                g.scope("op", |g| conv2d(g, h, options, None, None))
            }
            (Resample::Up, true) => {
                let h = upsample2(g, h)?;
                g.scope("conv", |g| conv2d(g, h, Conv2d::k3(channels), None, None))
            }
            (how, false) => plain_resample(g, h, how),
        })
    }

    fn res_block(
        &self,
        g: &mut Graph,
        name: &str,
        x: TensorId,
        cout: usize,
        resample: Option<Resample>,
    ) -> Result<TensorId> {
        self.region(g, |g| g.scope(name, |g| self.res_block_inner(g, x, cout, resample)))
    }

    fn res_block_inner(
        &self,
        g: &mut Graph,
        x: TensorId,
        cout: usize,
        resample: Option<Resample>,
    ) -> Result<TensorId> {
        let adaptive = self.config.use_scale_shift_norm;
        let cin = g.dims::<4>("unet", x)?[3];
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
            h = g.scope("out_layers.2", |g| dropout(g, h, self.config.dropout, rng))?;
        }
        let skip = if cin == cout {
            x
        } else {
            g.scope("skip_connection", |g| conv2d(g, x, Conv2d::k1(cout), None, None))?
        };
        g.scope("out_layers.3", |g| conv2d(g, h, Conv2d::k3(cout).zeroed(), None, Some(skip)))
    }

    fn attention_block(
        &self,
        g: &mut Graph,
        name: &str,
        x: TensorId,
        decoder: bool,
    ) -> Result<TensorId> {
        self.region(g, |g| g.scope(name, |g| self.attention_inner(g, x, decoder)))
    }

    fn attention_inner(&self, g: &mut Graph, x: TensorId, decoder: bool) -> Result<TensorId> {
        let channels = g.dims::<4>("unet", x)?[3];
        let new = self.config.use_new_attention_order;
        let order = if new { AttentionOrder::New } else { AttentionOrder::Legacy };
        let project = |cout| Conv2d { layout: FileLayout::Conv1d, ..Conv2d::k1(cout) };
        let h = g.scope("norm", |g| group_norm(g, x, norm(false), None))?;
        let qkv = g.scope("qkv", |g| conv2d(g, h, project(3 * channels), None, None))?;
        let h = attention(g, qkv, self.config.heads(channels, decoder), order)?;
        g.scope("proj_out", |g| conv2d(g, h, project(channels).zeroed(), None, Some(x)))
    }

    fn region(
        &self,
        g: &mut Graph,
        build: impl FnOnce(&mut Graph) -> Result<TensorId>,
    ) -> Result<TensorId> {
        if self.config.use_checkpoint { g.checkpoint(build) } else { build(g) }
    }
}

fn plain_resample(g: &mut Graph, h: TensorId, how: Resample) -> Result<TensorId> {
    match how {
        Resample::Up => upsample2(g, h),
        Resample::Down => downsample2(g, h),
    }
}
