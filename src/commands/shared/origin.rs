//! What a file says about the command that made it.

/// The command line as typed, for the metadata of what it makes.
pub fn command_line() -> String {
    let word = |w: std::ffi::OsString| w.to_string_lossy().into_owned();
    std::iter::once("demist".into())
        .chain(std::env::args_os().skip(1).map(word))
        .collect::<Vec<String>>()
        .join(" ")
}
