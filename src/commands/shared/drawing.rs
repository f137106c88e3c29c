//! Drawing under a progress bar.

use super::bar;
use demist::train::StopFlag;
use demist::{DrawStep, Error, Network, Result};

/// Shows how far drawing is, and ends it on Ctrl-C.
pub fn watch<'a>(
    name: &'a str,
    stop: &'a StopFlag,
) -> impl FnMut(&DrawStep) -> Result<()> + use<'a> {
    let mut shown = None;
    move |step| {
        let bar = shown.get_or_insert_with(|| bar(step.in_all as u64, name));
        bar.set_position(step.done as u64);
        if step.done > 0 {
            let rate = step.images_drawn() / bar.elapsed().as_secs_f64();
            bar.set_message(format!("{rate:.2} images/s"));
        }
        if step.done == step.in_all {
            bar.finish();
        }
        if stop.is_set() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Refuses networks that need small images.
pub fn draws_from_noise(network: &Network) -> Result<()> {
    match network.small_size() {
        None => Ok(()),
        Some(small) => Err(Error::file(
            network.name(),
            format!("enlarges images of {small} pixels; a network that needs none is needed"),
        )),
    }
}
