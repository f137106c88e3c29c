//! The noisy-image classifier whose gradient guides sampling (Dhariwal &
//! Nichol 2021, section 4): the U-Net's encoder and middle, and a pooling
//! head. Names and wiring are those of guided-diffusion's `EncoderUNetModel`.

use super::blocks::{Blocks, embedding, norm, projection};
use super::config::{EncoderConfig, Pool, SPATIAL_WIDTH};
use crate::Result;
use crate::graph::{DType, FileLayout, Graph, TensorId};
use crate::ops::{
    AttentionOrder, LinearOptions, attention, cast, conv2d, first_token, group_norm, linear,
    linear_with, mean_features, mean_pool, pool_tokens, relu,
};

/// Appends the classifier of the noisy images `x` [n, h, w, in_channels] at
/// timesteps `t` `[n]` to `g` and returns its logits [n, out_channels]. `rng`
/// is the random state of dropout (none in inference). Block outputs are
/// tapped under the names "time_embed", "input_blocks.i" and "middle_block".
/// Under [`Graph::half`] they are half, and the head ("out") is not.
///
/// # Errors
/// [`crate::Error::Config`] for impossible options, [`crate::Error::Shape`]
/// for operands that do not fit.
pub fn build_encoder(
    config: &EncoderConfig,
    g: &mut Graph,
    x: TensorId,
    t: TensorId,
    rng: Option<TensorId>,
) -> Result<TensorId> {
    config.validate()?;
    let trunk = config.trunk();
    let emb = embedding(trunk, g, t, None)?;
    let blocks = Blocks { trunk, emb, rng };
    let (h, mut maps) = blocks.input_blocks(g, x)?;
    let h = blocks.middle(g, h)?;
    maps.push(h);
    g.in_full(|g| g.scope("out", |g| head(config, g, h, &maps)))
}

/// The head reads its input in either precision and works in 32 bits.
fn head(config: &EncoderConfig, g: &mut Graph, h: TensorId, maps: &[TensorId]) -> Result<TensorId> {
    match config.pool {
        Pool::Adaptive => adaptive(config, g, h),
        Pool::Attention => attend(config, g, h),
        Pool::Spatial => {
            let h = pooled(g, maps)?;
            let h = g.scope("0", |g| linear(g, h, SPATIAL_WIDTH))?;
            let h = relu(g, h)?;
            g.scope("2", |g| linear(g, h, config.out_channels))
        }
        Pool::SpatialV2 => {
            let h = pooled(g, maps)?;
            let h = g.scope("0", |g| linear(g, h, SPATIAL_WIDTH))?;
            let h = g.scope("1", |g| group_norm(g, h, norm(true), None))?;
            g.scope("3", |g| linear(g, h, config.out_channels))
        }
    }
}

/// Channel means of all blocks side by side.
fn pooled(g: &mut Graph, maps: &[TensorId]) -> Result<TensorId> {
    let maps = maps.iter().map(|h| cast(g, *h, DType::F32)).collect::<Result<Vec<_>>>()?;
    mean_features(g, &maps)
}

fn adaptive(config: &EncoderConfig, g: &mut Graph, h: TensorId) -> Result<TensorId> {
    let h = g.scope("0", |g| group_norm(g, h, norm(true), None))?;
    let h = mean_pool(g, h)?;
    let outputs = config.out_channels;
    let options = LinearOptions { outputs, layout: FileLayout::Conv2d, zeroed: true };
    g.scope("3", |g| linear_with(g, h, options))
}

/// Attention from the mean to all positions. The reference projects every
/// token and returns the first; here only the first is projected.
fn attend(config: &EncoderConfig, g: &mut Graph, h: TensorId) -> Result<TensorId> {
    let h = g.scope("0", |g| group_norm(g, h, norm(true), None))?;
    g.scope("2", |g| {
        let tokens = pool_tokens(g, h)?;
        let channels = g.dims::<4>("encoder", tokens)?[3];
        let qkv =
            g.scope("qkv_proj", |g| conv2d(g, tokens, projection(3 * channels), None, None))?;
        let heads = config.trunk().heads(channels, false);
        // Not an option: the reference's pool knows this order only.
        let h = attention(g, qkv, heads, AttentionOrder::New)?;
        let h = first_token(g, h)?;
        let outputs = config.out_channels;
        let options = LinearOptions { outputs, layout: FileLayout::Conv1d, zeroed: false };
        g.scope("c_proj", |g| linear_with(g, h, options))
    })
}
