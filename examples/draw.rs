//! Draws faces with the network that comes with the crate: two of each class, and one
//! picture of them all.
//!
//! ```text
//! cargo run --release --example draw -- faces.png
//! ```

use demist::output::Grid;
use demist::{Classes, Device, DeviceOptions, DrawRequest, Generator, Result, block_on};
use std::path::PathBuf;

/// The shipped network of faces of 16x16 pixels.
const NETWORK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/faces16.safetensors");

/// Images of each class.
const EACH: usize = 2;

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "faces.png".into()));

    // The best adapter that there is; a software driver will do.
    let device = block_on(Device::open(DeviceOptions::default()))?;
    println!("drawing on {}", device.summary());

    let mut generator = Generator::open(&device, NETWORK)?;
    let request = DrawRequest {
        classes: Classes::All,
        count: EACH,
        batch: 10,
        seed: 7,
        steps: "20".into(),
        ..Default::default()
    };
    // Called after every step; `Err(Error::Interrupted)` would stop the work.
    let drawn = block_on(generator.draw_watched(&request, &mut |step| {
        print!("\rstep {} of {}", step.done, step.in_all);
        Ok(())
    }))?;
    println!();

    for image in drawn.images() {
        let mean = image.pixels().iter().map(|p| f64::from(*p)).sum::<f64>();
        let name = image.class_name.unwrap_or("face");
        println!("{}: {name}, mean {:.0}", image.number, mean / image.values.len() as f64);
    }
    Grid::new(&drawn.pixels(), [drawn.size, drawn.size, drawn.channels], EACH)
        .row_labels(drawn.class_names.iter().step_by(EACH).cloned())
        .save(&out, &[("Software", "demist")])?;
    println!("wrote {}", out.display());
    Ok(())
}
