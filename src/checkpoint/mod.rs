//! Tensors on disk.

pub mod tensor_file;

pub use tensor_file::{Header, Storage, Tensor, TensorData, TensorFile, load_header};
