//! Classes as they are typed, and how many images they make.

use demist::{Classes, Error, Network, Result};

/// Classes by name or number; "all" for all of them, any if none are typed.
pub fn classes_typed(names: &[String]) -> Classes {
    match names {
        [] => Classes::Any,
        names if names.iter().any(|c| c == "all") => Classes::All,
        names => Classes::Named(names.to_vec()),
    }
}

/// How many classes are typed, of those that `labelled` knows.
pub fn number_of_classes(classes: &Classes, labelled: &Network) -> usize {
    match classes {
        Classes::Any | Classes::OfEach(_) => 1,
        Classes::All => labelled.classes().unwrap_or(1),
        Classes::Named(names) => names.len(),
    }
}

/// Refuses more images than the random numbers tell apart, and images that no file
/// holds: `each` of every one of so many classes.
pub fn check_count(each: usize, classes: usize, network: &Network) -> Result<()> {
    let channels = network.channels();
    if !matches!(channels, 1 | 3) {
        return Err(Error::Config(format!(
            "the network draws images of {channels} channels; 1 (grey) and 3 (RGB) can be written"
        )));
    }
    match each.checked_mul(classes).map(u32::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => Err(Error::Config(format!(
            "--count {each} of {classes} classes is more than {} images",
            u32::MAX
        ))),
    }
}
