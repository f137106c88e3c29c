//! [`Trainer`]: trains a network on a device.

use super::{Device, Network};
use crate::checkpoint::{
    DataInfo, Holds, Imported, NetworkInfo, Progress, TensorFile, any_from_bytes,
};
#[cfg(feature = "files")]
use crate::checkpoint::{read_any, write_network};
use crate::data::Dataset;
use crate::diffusion::{DiffusionConfig, SpacedSchedule, VarType};
use crate::gpu::Ticket;
use crate::graph::FlatKind;
use crate::model::{EncoderConfig, Hints, ModelConfig, UNetConfig, default_model};
use crate::recipe::TrainConfig;
use crate::train::{Evaluation, Losses, Session, memory_need, network_file, restore, state_file};
#[cfg(feature = "plots")]
use crate::train::{OnEvent, RunOptions, StopFlag, TrainOutcome, go};
#[cfg(feature = "files")]
use crate::train::{load_state, save_state};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Submitted steps that may wait for the device.
const IN_FLIGHT: usize = 2;

/// What a [`Trainer`] is to train. The default is a diffusion network that suits the
/// images, from random weights.
#[derive(Debug, Clone, Default)]
pub struct TrainerOptions {
    /// The network. `None` takes that of [`TrainerOptions::start`], for the images and the
    /// classes of the data; without one, a U-Net that suits the size of the images.
    pub model: Option<ModelConfig>,
    /// The diffusion process. `None` takes that of [`TrainerOptions::start`]; without one,
    /// 1000 steps of the linear schedule.
    pub diffusion: Option<DiffusionConfig>,
    /// Images a step, learning rate, averages, seed and the like. Its `steps` are where
    /// the rate ends to fall, if it falls, and where [`Trainer::run`] ends.
    pub training: TrainConfig,
    /// Begins with the weights of this network. What it lacks begins anew
    /// ([`Prepared::fresh`]).
    pub start: Option<Imported>,
    /// What network files tell of where the images come from.
    pub source: String,
    /// What network files tell of the command that made them.
    pub command: String,
}

impl TrainerOptions {
    /// Begins with the weights of a network file: one of ours, a `.pt` file of the
    /// reference, or a folder of diffusers.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if it is no such file.
    #[cfg(feature = "files")]
    pub fn start_from(path: impl AsRef<Path>) -> Result<TrainerOptions> {
        let start = read_any(path.as_ref(), None, &Hints::default())?;
        Ok(TrainerOptions { start: Some(start), ..Default::default() })
    }

    /// As [`TrainerOptions::start_from`], from a file's bytes; `name` stands for the file in
    /// messages.
    ///
    /// # Errors
    /// [`Error::File`] if they are no such file.
    pub fn start_from_bytes(name: impl AsRef<Path>, bytes: &[u8]) -> Result<TrainerOptions> {
        let start = any_from_bytes(name, bytes, None, &Hints::default())?;
        Ok(TrainerOptions { start: Some(start), ..Default::default() })
    }

    /// Decides everything that the images leave open, and refuses what is impossible,
    /// without a device.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn prepare(self, images: &Dataset) -> Result<Prepared> {
        let start = self.start.as_ref();
        let diffusion = self.diffusion.or(start.map(|s| s.diffusion.clone())).unwrap_or_default();
        SpacedSchedule::new(&diffusion, "")?;
        let model = match (self.model, start.map(|s| &s.model)) {
            (Some(model), _) => model,
            (None, Some(ModelConfig::Encoder(base))) => ModelConfig::Encoder(EncoderConfig {
                image_size: images.size(),
                out_channels: images.classes().len(),
                ..base.clone()
            }),
            (None, Some(ModelConfig::UNet(base))) => {
                ModelConfig::UNet(unet_for(images, diffusion.var_type, base.clone()))
            }
            (None, None) => {
                let suited = default_model(images.size());
                ModelConfig::UNet(unet_for(images, diffusion.var_type, suited))
            }
        };
        model.validate()?;
        self.training.validate()?;
        check_images(&model, images)?;
        let initial = start.map(|s| s.initial(&model, self.training.seed)).transpose()?;
        let (initial, fresh) = initial.map_or((None, Vec::new()), |(v, fresh)| (Some(v), fresh));
        let info = NetworkInfo {
            model,
            diffusion,
            data: DataInfo {
                classes: images.classes().to_vec(),
                images: images.len(),
                source: self.source,
            },
            training: self.training,
            progress: Progress::default(),
            holds: Holds::State,
            command: self.command,
            device: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let origin = initial.map_or(Origin::Random, Origin::Values);
        Ok(Prepared { info, origin, fresh })
    }
}

/// The U-Net `base` for the images and classes of a data set.
fn unet_for(images: &Dataset, variance: VarType, base: UNetConfig) -> UNetConfig {
    let classes = images.classes().len();
    let num_classes = (classes > 1).then_some(classes);
    let outputs = if variance.is_learned() { 2 } else { 1 };
    UNetConfig {
        image_size: images.size(),
        in_channels: images.channels(),
        out_channels: images.channels() * outputs,
        num_classes,
        // A row for "no class" stays where the classes do.
        null_class: base.null_class && num_classes == base.num_classes && num_classes.is_some(),
        ..base
    }
}

/// Refuses images that a network is not for.
fn check_images(model: &ModelConfig, images: &Dataset) -> Result<()> {
    let (side, channels) = (model.image_size(), model.in_channels());
    if (images.size(), images.channels()) != (side, channels) {
        return Err(Error::Config(format!(
            "the network is for images of {side}x{side}x{channels}, these are of {0}x{0}x{1}",
            images.size(),
            images.channels()
        )));
    }
    match (model.classes(), images.classes().len()) {
        (Some(known), given) if known != given => Err(Error::Config(format!(
            "the network knows {known} classes, the images are of {given}"
        ))),
        _ => Ok(()),
    }
}

/// A training that is described in full, without a device.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What is trained.
    pub info: NetworkInfo,
    origin: Origin,
    fresh: Vec<String>,
}

/// Where weights come from.
#[derive(Debug, Clone)]
enum Origin {
    /// The seed.
    Random,
    /// Values in device layout.
    Values(Vec<Vec<f32>>),
    /// A saved state, not yet read.
    #[cfg(feature = "files")]
    StateAt(PathBuf),
    /// A saved state under its name.
    State(Box<(PathBuf, NetworkInfo, TensorFile)>),
}

impl Prepared {
    /// A training that goes on from the file of [`Trainer::save_state`], or from the
    /// `state.safetensors` of a run. `info` is what the file tells
    /// ([`read_info`](crate::checkpoint::read_info)); its steps, micro-batch and recomputed
    /// levels may be changed.
    #[cfg(feature = "files")]
    pub fn resumed(info: NetworkInfo, state: impl Into<PathBuf>) -> Prepared {
        Prepared { info, origin: Origin::StateAt(state.into()), fresh: Vec::new() }
    }

    /// A training that goes on from the contents of a state's file
    /// ([`Trainer::state`], [`network_from_bytes`](crate::checkpoint::network_from_bytes)).
    /// `name` stands for the file in messages; of `info`, the steps, the micro-batch and the
    /// recomputed levels may differ from what the file tells.
    pub fn resumed_from(
        info: NetworkInfo,
        name: impl Into<PathBuf>,
        (saved, state): (NetworkInfo, TensorFile),
    ) -> Prepared {
        let origin = Origin::State(Box::new((name.into(), saved, state)));
        Prepared { info, origin, fresh: Vec::new() }
    }

    /// Names of the parameters that [`TrainerOptions::start`] does not hold, or not all
    /// of: they begin anew.
    pub fn fresh(&self) -> &[String] {
        &self.fresh
    }
}

/// A network in training on a device.
///
/// ```no_run
/// # fn main() -> demist::Result<()> {
/// use demist::{Device, DeviceOptions, Trainer, TrainerOptions, block_on};
/// use demist::data::Dataset;
/// use std::ops::ControlFlow::Continue;
///
/// let device = block_on(Device::open(DeviceOptions::default()))?;
/// let pixels = vec![128; 100 * 16 * 16 * 3]; // 100 images of 16x16 pixels
/// let images = Dataset::from_pixels(pixels, 16, 3, Vec::new(), Vec::new())?;
/// let mut trainer = block_on(Trainer::new(&device, images, TrainerOptions::default()))?;
/// block_on(trainer.train(1000, &mut |_| Continue(())))?;
/// block_on(trainer.save("network.safetensors"))?;
/// # Ok(())
/// # }
/// ```
pub struct Trainer {
    device: Device,
    session: Session,
    in_flight: VecDeque<Ticket>,
}

/// How far [`Trainer::train`] is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainerStep {
    /// Steps of this call that are submitted.
    pub done: u64,
    /// Steps of this call.
    pub in_all: u64,
    /// Steps and images of the whole training.
    pub progress: Progress,
}

impl Trainer {
    /// Plans, compiles and begins.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible options, [`Error::Memory`] if the device has no
    /// room for a micro-batch.
    pub async fn new(
        device: &Device,
        images: impl Into<Arc<Dataset>>,
        options: TrainerOptions,
    ) -> Result<Trainer> {
        let images = images.into();
        let prepared = options.prepare(&images)?;
        Self::begin(device, images, prepared).await
    }

    /// As [`Trainer::new`], of a training that was prepared.
    ///
    /// # Errors
    /// As [`Trainer::new`]; [`Error::File`] if a state does not fit.
    pub async fn begin(
        device: &Device,
        images: impl Into<Arc<Dataset>>,
        prepared: Prepared,
    ) -> Result<Trainer> {
        let (gpu, ctx) = (device.gpu(), device.context());
        let Prepared { mut info, origin, .. } = prepared;
        info.device = device.summary().to_string();
        info.training.validate()?;
        info.model.check_batch(info.training.micro_batch, gpu.caps.max_binding)?;
        let need = memory_need(&gpu.caps, &info.model, &info.diffusion, &info.training)?;
        gpu.check_room(need.bytes())?;
        let mut session = Session::new(ctx, info, images.into()).await?;
        match origin {
            Origin::Random => session.begin(ctx, None)?,
            Origin::Values(values) => session.begin(ctx, Some(&values))?,
            #[cfg(feature = "files")]
            Origin::StateAt(path) => load_state(ctx, &mut session, &path).await?,
            Origin::State(state) => {
                let (name, saved, state) = *state;
                restore(ctx, &mut session, (&name, &saved, &state)).await?
            }
        }
        Ok(Trainer { device: device.clone(), session, in_flight: VecDeque::new() })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What is trained, and how far.
    pub fn info(&self) -> &NetworkInfo {
        self.session.info()
    }

    /// Runs one optimizer step on the next images. It returns when the device has begun
    /// with it, not when it is done.
    ///
    /// # Errors
    /// [`Error::Data`] if an image cannot be read, [`Error::Device`] on a fault.
    pub async fn step(&mut self) -> Result<()> {
        let ctx = self.device.context();
        self.in_flight.push_back(self.session.step(ctx).await?);
        if self.in_flight.len() > IN_FLIGHT
            && let Some(ticket) = self.in_flight.pop_front()
        {
            ctx.gpu.wait_for_async(&ticket).await?;
        }
        Ok(())
    }

    /// Runs `steps` steps, fewer if `watch`, which is called after each, breaks. Returns
    /// the losses since they were last asked for.
    ///
    /// # Errors
    /// As [`Trainer::step`] and [`Trainer::losses`].
    pub async fn train(
        &mut self,
        steps: u64,
        watch: &mut dyn FnMut(&TrainerStep) -> ControlFlow<()>,
    ) -> Result<Option<Losses>> {
        for done in 1..=steps {
            self.step().await?;
            let progress = self.info().progress;
            if watch(&TrainerStep { done, in_all: steps, progress }).is_break() {
                break;
            }
        }
        self.losses().await
    }

    /// The mean losses of the steps since the last call; none if there was no step.
    ///
    /// # Errors
    /// [`Error::Config`] if losses were not finite several times in a row, [`Error::Device`]
    /// on a fault.
    pub async fn losses(&mut self) -> Result<Option<Losses>> {
        let losses = self.session.take_losses(self.device.context()).await?;
        self.session.check_converging()?;
        Ok(losses)
    }

    /// The losses of the averaged weights on up to `most` other images, under noise that
    /// is the same each time.
    ///
    /// # Errors
    /// [`Error::Config`] if the images are not those of the network, [`Error::Memory`] if
    /// the device has no room.
    pub async fn evaluate(&mut self, images: &Dataset, most: usize) -> Result<Evaluation> {
        check_images(&self.info().model, images)?;
        self.session.evaluate(self.device.context(), images, most).await
    }

    /// The averaged weights as a network, to draw with
    /// ([`Generator::new`](super::Generator::new)).
    ///
    /// # Errors
    /// [`Error::Device`] on a fault.
    pub async fn network(&self) -> Result<Network> {
        let (info, tensors) = self.averaged().await?;
        Ok(Network::new("the network in training", info, tensors))
    }

    async fn averaged(&self) -> Result<(NetworkInfo, TensorFile)> {
        network_file(self.device.context(), &self.session, FlatKind::Ema(0)).await
    }

    /// Writes the averaged weights as a network file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, [`Error::Device`] on a fault.
    #[cfg(feature = "files")]
    pub async fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let (info, tensors) = self.averaged().await?;
        write_network(path.as_ref(), &info, tensors, false)
    }

    /// All that [`Prepared::resumed_from`] goes on from.
    ///
    /// # Errors
    /// [`Error::Device`] on a fault.
    pub async fn state(&self) -> Result<(NetworkInfo, TensorFile)> {
        state_file(self.device.context(), &self.session).await
    }

    /// Writes all that [`Prepared::resumed`] goes on from.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, [`Error::Device`] on a fault.
    #[cfg(feature = "files")]
    pub async fn save_state(&self, path: impl AsRef<Path>) -> Result<()> {
        save_state(self.device.context(), &self.session, path.as_ref()).await
    }

    /// Trains to the last step of the recipe, or until `stop` is set, and has a run folder
    /// keep networks, tables, plots and pictures at intervals. This is what `demist train`
    /// does.
    ///
    /// # Errors
    /// Anything that can fail on the way; what was saved before stays.
    #[cfg(feature = "plots")]
    pub fn run(
        &mut self,
        options: &RunOptions,
        stop: &StopFlag,
        on_event: OnEvent,
    ) -> Result<TrainOutcome> {
        self.in_flight.clear();
        go(self.device.context(), &mut self.session, options, stop, on_event)
    }
}
