//! The crate's one error type: every failure is a value that names the
//! operation, the shapes or the file, and says what would have been needed.

use std::path::{Path, PathBuf};

/// Result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong, each variant rendered as one clear line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was being done: "read", "create", "rename".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file's contents are not what its format promises.
    #[error("{}: {detail}", path.display())]
    File {
        /// The offending file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        detail: String,
    },
    /// A data set cannot be used as asked.
    #[error("data: {0}")]
    Data(String),
    /// An option or configuration is impossible or contradictory.
    #[error("{0}")]
    Config(String),
    /// An op was given shapes it cannot work on.
    #[error("{op}: {detail}")]
    Shape {
        /// The op, by its field name ("conv2d").
        op: &'static str,
        /// The shapes found and the shapes needed.
        detail: String,
    },
    /// A shader failed to compose, parse or agree with its Rust description.
    #[error("kernel {kernel}: {detail}")]
    Kernel {
        /// The kernel's name.
        kernel: String,
        /// The composer's, naga's or the driver's message.
        detail: String,
    },
    /// No adapter, a lost device or a failed request.
    #[error("device: {0}")]
    Device(String),
    /// The plan does not fit the device.
    #[error("out of memory: {0}")]
    Memory(String),
    /// The user asked to stop; everything has been saved.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Wraps an I/O error with the path and the action that failed.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Error::Io { action, path: path.to_owned(), source }
    }

    /// A malformed file.
    pub fn file(path: &Path, detail: impl Into<String>) -> Self {
        Error::File { path: path.to_owned(), detail: detail.into() }
    }

    /// Impossible shapes for `op`.
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Error::Shape { op, detail: detail.into() }
    }
}
