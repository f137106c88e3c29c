//! The pictures of a run in progress: a grid drawn with the averaged weights,
//! one row a class, or small image, result and original for super-resolution.

use crate::checkpoint::NetworkInfo;
use crate::data::{Augment, Dataset, Squares};
use crate::diffusion::{SampleJob, SampleOptions, SamplingLoop};
use crate::graph::FlatKind;
use crate::model::UNetConfig;
use crate::output::{Grid, image::to_u8};
use crate::runtime::Context;
use crate::train::Session;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Images in a row.
const COLUMNS: usize = 8;
/// Denoising steps.
const STEPS: usize = 25;

/// Draws grids while a network trains.
pub(super) struct Preview {
    sampling: SamplingLoop,
}

impl Preview {
    pub fn new(ctx: Context, session: &Session) -> Result<Preview> {
        let info = session.info();
        let (model, flat) = (info.model.unet()?, session.step_program().flat());
        let sampling =
            SamplingLoop::new(ctx, model, &info.diffusion, COLUMNS, flat, FlatKind::Ema(0))?;
        Ok(Preview { sampling })
    }

    /// Draws and writes a grid; returns its path.
    pub fn draw(
        &self,
        ctx: Context,
        info: &NetworkInfo,
        dataset: &Dataset,
        folder: &Path,
    ) -> Result<PathBuf> {
        let model = info.model.unet()?;
        let folder = folder.join("samples");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let path = folder.join(format!("step_{:07}.png", info.progress.step));
        let title =
            format!("step {}, {} images seen", info.progress.step, info.progress.images_seen);
        let (images, labels) = match model.small_size {
            Some(small) => (self.upsampled(ctx, info, model, small, dataset)?, Vec::new()),
            None => self.classes(ctx, info, model)?,
        };
        let (size, channels) = (model.image_size, model.in_channels);
        let pixels = to_u8(&images);
        let mut grid = Grid::new(&pixels, [size, size, channels], COLUMNS).title(title);
        if model.small_size.is_some() {
            grid = grid.row_labels(["given", "drawn", "original"]);
        } else if !labels.is_empty() {
            grid = grid.row_labels(labels);
        }
        grid.save(&path, &[("Software", "demist"), ("Comment", &info.command)])?;
        Ok(path)
    }

    fn options(info: &NetworkInfo) -> SampleOptions {
        let steps = info.diffusion.diffusion_steps;
        let respacing = if steps > STEPS { STEPS.to_string() } else { String::new() };
        SampleOptions { respacing, seed: info.training.seed, ..Default::default() }
    }

    /// A row for each class.
    fn classes(
        &self,
        ctx: Context,
        info: &NetworkInfo,
        model: &UNetConfig,
    ) -> Result<(Vec<f32>, Vec<String>)> {
        let rows = model.num_classes.unwrap_or(4).min(10);
        let mut images = Vec::new();
        for row in 0..rows {
            let labels =
                if model.num_classes.is_some() { vec![row as u32; COLUMNS] } else { Vec::new() };
            let first = (row * COLUMNS) as u64;
            let job = SampleJob { first, count: COLUMNS, labels: &labels, ..Default::default() };
            images.extend(self.sampling.sample(
                ctx,
                &Self::options(info),
                &job,
                &mut |_| Ok(()),
            )?);
        }
        let classes = info.data.classes.iter().take(rows).cloned();
        Ok((images, if model.num_classes.is_some() { classes.collect() } else { Vec::new() }))
    }

    /// Rows of small images, what is made of them, and the originals.
    fn upsampled(
        &self,
        ctx: Context,
        info: &NetworkInfo,
        model: &UNetConfig,
        small: usize,
        dataset: &Dataset,
    ) -> Result<Vec<f32>> {
        let (size, channels, len) = (model.image_size, model.in_channels, dataset.image_len());
        let mut originals = vec![0.0; COLUMNS * len];
        let mut labels = Vec::new();
        for (i, out) in originals.chunks_mut(len).enumerate() {
            let at = i * dataset.len() / COLUMNS;
            dataset.write_floats(at, Augment::default(), out)?;
            labels.push(dataset.label(at));
        }
        let low_res = Squares { pixels: &originals, side: size, channels }.by_area(small);
        let labels = if model.num_classes.is_some() { labels } else { Vec::new() };
        let job = SampleJob {
            count: COLUMNS,
            labels: &labels,
            low_res: Some(&low_res),
            ..Default::default()
        };
        let drawn = self.sampling.sample(ctx, &Self::options(info), &job, &mut |_| Ok(()))?;
        let given = Squares { pixels: &low_res, side: small, channels }.by_repetition(size);
        Ok([given, drawn, originals].concat())
    }
}
