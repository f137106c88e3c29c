//! Networks and tensors on disk.

mod network;
pub mod tensor_file;

pub use network::{DataInfo, NetworkInfo, Progress, read_info, read_network, write_network};
pub use tensor_file::{Header, Storage, Tensor, TensorData, TensorFile, load_header};
