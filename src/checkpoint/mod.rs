//! Networks and tensors on disk.

mod base;
mod diffusers;
mod import;
mod network;
mod parameters;
mod pickle;
pub mod tensor_file;
mod torch;

pub use base::read_any;
pub use diffusers::{read_diffusers, write_diffusers};
pub use import::{Imported, import, write_reference};
pub use network::{DataInfo, Holds, NetworkInfo, Progress, read_info, read_network, write_network};
pub use parameters::{check_parameters, parameters, parameters_to_tensors};
pub use tensor_file::{Header, Storage, Tensor, TensorData, TensorFile, load_header};
pub use torch::{read_tensors, read_torch};
