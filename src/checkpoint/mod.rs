//! Networks and tensors in files: our own, and those of PyTorch, safetensors and
//! diffusers. What reads a path also has a form that takes bytes (`.._from_bytes`).

mod base;
#[cfg(feature = "files")]
mod diffusers;
mod guess;
mod import;
mod network;
mod parameters;
mod pickle;
mod tensor;
pub mod tensor_file;
mod torch;

pub use base::any_from_bytes;
pub use import::{Imported, import_from_bytes};
pub use network::{
    DataInfo, Holds, NetworkInfo, Progress, info_from_bytes, network_from_bytes, network_to_bytes,
};
pub use parameters::{check_parameters, parameters, parameters_to_tensors};
pub use tensor::{Tensor, TensorData};
pub use tensor_file::{Header, Storage, TensorFile, header_from_bytes};
pub use torch::{tensors_from_bytes, torch_from_bytes};
#[cfg(feature = "files")]
pub use {
    base::read_any,
    diffusers::{read_diffusers, write_diffusers},
    import::{import, write_reference},
    network::{read_info, read_network, write_network},
    tensor_file::load_header,
    torch::{read_tensors, read_torch},
};
