//! [`Network`]: the contents of a network file.

#[cfg(feature = "files")]
use crate::checkpoint::read_network;
use crate::checkpoint::{
    NetworkInfo, TensorFile, check_parameters, network_from_bytes, parameters,
};
use crate::data::first_names;
use crate::graph::ParamInfo;
use crate::model::{EncoderConfig, UNetConfig, model_params};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A network as it lies in a file: its weights, and all that the file tells of it. A
/// clone shares the weights.
#[derive(Debug, Clone)]
pub struct Network(Arc<Contents>);

#[derive(Debug)]
struct Contents {
    /// Stands in every message about it.
    name: PathBuf,
    info: NetworkInfo,
    tensors: TensorFile,
}

impl Network {
    /// Reads a file that `demist` wrote: a `network.safetensors`, or a run's
    /// `state.safetensors`, of which the averaged weights are used.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::File`] if it is no sound network file.
    #[cfg(feature = "files")]
    pub fn read(path: impl AsRef<Path>) -> Result<Network> {
        let path = path.as_ref();
        let (info, tensors) = read_network(path)?;
        Ok(Self::new(path, info, tensors))
    }

    /// As [`Network::read`], from the bytes of a file; `name` stands in messages about it.
    ///
    /// # Errors
    /// [`Error::File`] if they are no sound network file.
    pub fn from_bytes(name: impl AsRef<Path>, bytes: &[u8]) -> Result<Network> {
        let (info, tensors) = network_from_bytes(&name, bytes)?;
        Ok(Self::new(name, info, tensors))
    }

    /// A network from its parts; `name` stands in messages about it.
    pub fn new(name: impl AsRef<Path>, info: NetworkInfo, tensors: TensorFile) -> Network {
        let name = name.as_ref().to_owned();
        Network(Arc::new(Contents { name, info, tensors }))
    }

    /// The file's name, or what stands for it.
    pub fn name(&self) -> &Path {
        &self.0.name
    }

    /// What the file tells: the configuration of the network and of its process, its
    /// classes, and how it was trained.
    pub fn info(&self) -> &NetworkInfo {
        &self.0.info
    }

    /// Side of the square images in pixels.
    pub fn image_size(&self) -> usize {
        self.info().model.image_size()
    }

    /// Channels of the images: 1 for grey, 3 for RGB.
    pub fn channels(&self) -> usize {
        self.info().model.in_channels()
    }

    /// Number of classes, of a network that knows classes.
    pub fn classes(&self) -> Option<usize> {
        self.info().model.classes()
    }

    /// Name of a class; its number as text where the classes have no names.
    pub fn class_name(&self, class: u32) -> String {
        let name = self.info().data.classes.get(class as usize).cloned();
        name.unwrap_or_else(|| class.to_string())
    }

    /// Side of the small images that it enlarges, of a super-resolution network.
    pub fn small_size(&self) -> Option<usize> {
        self.info().model.unet().ok().and_then(|m| m.small_size)
    }

    /// Checks that the weights are those of the configuration: names, shapes, types.
    ///
    /// # Errors
    /// [`Error::File`] with the first differences.
    pub fn check_weights(&self) -> Result<()> {
        check_parameters(&model_params(&self.info().model)?, &self.0.tensors, self.prefix())
            .map_err(|e| self.fault(e))
    }

    /// Checks that it enlarges images that `small` draws and that belong to the classes
    /// of `labelled` (`small` itself, or the classifier that guides it).
    ///
    /// # Errors
    /// [`Error::File`] naming what does not fit.
    pub fn check_enlarges(&self, small: &Network, labelled: &Network) -> Result<()> {
        self.unet()?;
        let size = small.image_size();
        match self.small_size() {
            None => return Err(self.fault("is no super-resolution network")),
            Some(own) if own != size => {
                let why = format!("enlarges images of {own} pixels, these are of {size}");
                return Err(self.fault(why));
            }
            Some(_) => {}
        }
        if self.channels() != small.channels() {
            let [own, given] = [self, small].map(Network::channels);
            return Err(self.fault(format!("is for images of {own} channels, these have {given}")));
        }
        let Some(classes) = self.classes() else { return Ok(()) };
        match labelled.classes() {
            None => Err(self.fault(format!(
                "needs one of {classes} classes, the first network draws images of none"
            ))),
            Some(n) if n != classes => {
                Err(self.fault(format!("knows {classes} classes, the first network {n}")))
            }
            Some(_) => match self.other_names(labelled) {
                Some([own, other]) => {
                    Err(self.fault(format!("knows the classes {own}, the first network {other}")))
                }
                None => Ok(()),
            },
        }
    }

    /// The first names of both, if both have names of their classes and they differ.
    pub(super) fn other_names(&self, other: &Network) -> Option<[String; 2]> {
        let [own, other] = [self, other].map(|n| &n.info().data.classes);
        let differ = !own.is_empty() && !other.is_empty() && own != other;
        differ.then(|| [own, other].map(|names| first_names(names)))
    }

    /// Whether both are the same in memory.
    pub(super) fn is(&self, other: &Network) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The configuration of a diffusion network.
    pub(super) fn unet(&self) -> Result<&UNetConfig> {
        self.info().model.unet().map_err(|e| self.fault(e.to_string()))
    }

    /// The configuration of a classifier.
    pub(super) fn encoder(&self) -> Result<&EncoderConfig> {
        self.info().model.encoder().map_err(|e| self.fault(e.to_string()))
    }

    /// The weights of `params`, the parameters of a graph, in device layout.
    ///
    /// # Errors
    /// [`Error::File`] with the first differences if they are not the file's.
    pub fn values(&self, params: &[ParamInfo]) -> Result<Vec<Vec<f32>>> {
        parameters(params, &self.0.tensors, self.prefix()).map_err(|e| self.fault(e))
    }

    /// What the names of its weights begin with: a run's state holds other values too.
    fn prefix(&self) -> &'static str {
        self.info().holds.prefix()
    }

    /// An error about this file.
    pub(super) fn fault(&self, detail: impl Into<String>) -> Error {
        Error::file(self.name(), detail)
    }
}
