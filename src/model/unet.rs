//! The ADM U-Net, described once: from this graph come the inference and the
//! training plan. Names and wiring are those of guided-diffusion's
//! `UNetModel`, so that parameters can move between systems.

use super::blocks::{Blocks, Resample, embedding, norm};
use super::config::UNetConfig;
use crate::graph::{Graph, TensorId};
use crate::ops::{Conv2d, concat, conv2d, group_norm, resize_bilinear};
use crate::{Error, Result};

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

/// Appends the network to `g` and returns its output [n, h, w, out_channels].
/// Block outputs are tapped under the names "time_embed", "input_blocks.i",
/// "middle_block" and "output_blocks.i". Under [`Graph::half`] all blocks but
/// "out" are half.
///
/// # Errors
/// [`crate::Error::Config`] for impossible options, [`crate::Error::Shape`]
/// for operands that are missing, not expected or do not fit.
pub fn build(config: &UNetConfig, g: &mut Graph, inputs: UNetInputs) -> Result<TensorId> {
    config.validate()?;
    let trunk = config.trunk();
    let labels = match (config.label_rows(), inputs.y) {
        (Some(rows), Some(y)) => Some((y, rows)),
        (None, None) => None,
        (Some(_), None) => return Err(Error::shape("unet", "a conditional network needs labels")),
        (None, Some(_)) => return Err(Error::shape("unet", "the network has no classes")),
    };
    let emb = embedding(trunk, g, inputs.t, labels)?;
    let blocks = Blocks { trunk, emb, rng: inputs.rng };
    let x = with_low_res(config, g, inputs)?;
    let (h, mut skips) = blocks.input_blocks(g, x)?;
    let h = blocks.middle(g, h)?;
    let h = output_blocks(&blocks, g, h, &mut skips)?;
    g.in_full(|g| {
        g.scope("out", |g| {
            let h = g.scope("0", |g| group_norm(g, h, norm(true), None))?;
            g.scope("2", |g| conv2d(g, h, Conv2d::k3(config.out_channels).zeroed(), None, None))
        })
    })
}

/// What the stem sees: the noisy image, in a super-resolution network followed
/// by the small one at its size (guided-diffusion's `SuperResModel`).
fn with_low_res(config: &UNetConfig, g: &mut Graph, inputs: UNetInputs) -> Result<TensorId> {
    let [n, h, w, _] = g.dims("unet", inputs.x)?;
    let fail = |detail: String| Err(Error::shape("unet", detail));
    match (config.small_size, inputs.low_res) {
        (None, None) => Ok(inputs.x),
        (None, Some(_)) => fail("only a super-resolution network is given a small image".into()),
        (Some(small), None) => fail(format!("the network needs a small image of {small} pixels")),
        (Some(small), Some(low_res)) => {
            let needed = [n, small, small, config.in_channels];
            if g.shape(low_res) != needed {
                return fail(format!(
                    "the small image is {:?}, {needed:?} is needed",
                    g.shape(low_res)
                ));
            }
            let upsampled = resize_bilinear(g, low_res, [h, w])?;
            g.tap("upsampled", upsampled);
            concat(g, inputs.x, upsampled)
        }
    }
}

/// The decoder, which reads the encoder's outputs from the last to the first.
fn output_blocks(
    blocks: &Blocks,
    g: &mut Graph,
    mut h: TensorId,
    skips: &mut Vec<TensorId>,
) -> Result<TensorId> {
    let c = blocks.trunk;
    let mut index = 0;
    for level in (0..c.levels()).rev() {
        for i in 0..=c.num_res_blocks {
            let Some(skip) = skips.pop() else { continue };
            let name = format!("output_blocks.{index}");
            h = g.scope(name.clone(), |g| {
                // One region with the concatenation, which is wider than all
                // that the block keeps.
                let mut h = blocks.region(g, level, |g| {
                    let h = concat(g, h, skip)?;
                    blocks.res_block(g, "0", level, h, c.channels(level))
                })?;
                let mut next = 1;
                if c.attends(level) {
                    h = blocks.attention_block(g, "1", level, h, true)?;
                    next = 2;
                }
                if level > 0 && i == c.num_res_blocks {
                    h = blocks.resample(g, &next.to_string(), level - 1, h, Resample::Up)?;
                }
                Ok::<_, Error>(h)
            })?;
            g.tap(name, h);
            index += 1;
        }
    }
    Ok(h)
}
