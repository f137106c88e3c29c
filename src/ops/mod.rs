//! The ops: one file or folder each, with the mathematics, the shape check, forward,
//! backward and the kernels it launches. `shaders/`, `reference/` and
//! `tests/` use the same names.

mod adamw;
mod add;
mod attention;
mod cast;
mod concat;
mod conv2d;
mod cross_entropy;
mod denoise;
mod dropout;
mod ema;
mod gaussian;
mod grad_norm;
mod group_norm;
mod label_embedding;
mod linear;
mod loss;
mod loss_scale;
mod loss_stats;
mod mean_pool;
mod pixels;
mod pool_tokens;
mod q_sample;
mod quads;
mod relu;
mod repeat;
mod resample;
mod resize;
mod silu;
mod sum_rows;
mod timestep_embedding;
mod vlb;
mod workgroups;

pub use adamw::{AdamW, OptimizerTensors, optimizer_step};
pub use add::add;
pub use attention::{AttentionOrder, attention};
pub use cast::{cast, pack_weights};
pub use concat::concat;
pub use conv2d::{Conv2d, conv2d};
pub use cross_entropy::{CrossEntropy, cross_entropy};
pub use denoise::{
    DENOISE_COEFS, DenoiseInputs, UPDATE_DDIM, UPDATE_DDPM, Update, denoise, denoise_coefs,
};
pub use dropout::dropout;
pub use ema::ema;
pub use gaussian::gaussian;
pub use grad_norm::grad_norm;
pub use group_norm::{GroupNorm, group_norm};
pub use label_embedding::label_embedding;
pub use linear::{LinearOptions, linear, linear_with};
pub use loss::mse;
pub use loss_scale::{LossScale, loss_scale};
pub use loss_stats::{LOSS_STATS, loss_stats};
pub use mean_pool::{mean_features, mean_pool};
pub use pool_tokens::{first_token, pool_tokens};
pub use q_sample::{q_sample, q_sample_with};
pub use relu::relu;
pub use repeat::repeat_batch;
pub use resample::{downsample2, upsample2};
pub use resize::{resize_area, resize_bilinear};
pub use silu::silu;
pub use timestep_embedding::timestep_embedding;
pub use vlb::{VLB_COEFS, VlbOptions, likelihood_terms, vlb};

pub(crate) use sum_rows::sum_rows;
pub(crate) use workgroups::{GROUP, LOOP_TURNS, groups};

use crate::kernel::Kernel;

/// Every kernel of the crate with the define values that its ops use, for
/// tests that compile and reflect all variants.
pub fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let mut all = Vec::new();
    all.extend(conv2d::kernels());
    all.extend(add::kernels());
    all.extend(attention::kernels());
    all.extend(cast::kernels());
    all.extend(concat::kernels());
    all.extend(group_norm::kernels());
    all.extend(resample::kernels());
    all.extend(resize::kernels());
    all.extend(mean_pool::kernels());
    all.extend(pool_tokens::kernels());
    all.extend(relu::kernels());
    all.extend(silu::kernels());
    all.extend(dropout::kernels());
    all.extend(label_embedding::kernels());
    all.extend(timestep_embedding::kernels());
    all.extend(loss::kernels());
    all.extend(loss_scale::kernels());
    all.extend(vlb::kernels());
    all.extend(cross_entropy::kernels());
    all.extend(loss_stats::kernels());
    all.extend(repeat::kernels());
    all.extend(gaussian::kernels());
    all.extend(q_sample::kernels());
    all.extend(denoise::kernels());
    all.extend(grad_norm::kernels());
    all.extend(adamw::kernels());
    all.extend(ema::kernels());
    all.extend(sum_rows::kernels());
    all
}
