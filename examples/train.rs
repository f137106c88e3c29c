//! Trains a tiny network on images in memory, writes it as a network file, and draws
//! from it: `cargo run --release --example train [FILE]`.

use demist::data::Dataset;
use demist::diffusion::{DiffusionConfig, MeanType, NoiseSchedule};
use demist::model::{ModelConfig, UNetConfig};
use demist::recipe::TrainConfig;
use demist::{
    Classes, Device, DeviceOptions, DrawRequest, Generator, Trainer, TrainerOptions, block_on,
};
use std::ops::ControlFlow;

/// Side of the images in pixels.
const SIZE: usize = 8;

/// Grey images of two classes: a bright left half, or a bright right half.
fn images() -> demist::Result<Dataset> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for number in 0..64 {
        let (label, shade) = (number % 2, 2 * number as u8);
        for x in (0..SIZE).cycle().take(SIZE * SIZE) {
            let bright = (x >= SIZE / 2) == (label == 1);
            pixels.push(if bright { 255 - shade / 4 } else { shade / 4 });
        }
        labels.push(label);
    }
    let classes = ["left", "right"].map(String::from).to_vec();
    Dataset::from_pixels(pixels, SIZE, 1, labels, classes)
}

fn main() -> demist::Result<()> {
    let file =
        std::env::args().nth(1).map_or(std::env::temp_dir().join("tiny.safetensors"), Into::into);
    let device = block_on(Device::open(DeviceOptions::default()))?;
    let model = UNetConfig {
        image_size: SIZE,
        in_channels: 1,
        model_channels: 32,
        out_channels: 1,
        num_res_blocks: 1,
        attention_resolutions: Vec::new(),
        channel_mult: vec![1.0],
        num_classes: Some(2),
        use_scale_shift_norm: true,
        ..Default::default()
    };
    let options = TrainerOptions {
        model: Some(ModelConfig::UNet(model)),
        diffusion: Some(DiffusionConfig {
            noise_schedule: NoiseSchedule::Cosine,
            mean_type: MeanType::XStart,
            ..Default::default()
        }),
        training: TrainConfig {
            batch_size: 8,
            micro_batch: 8,
            lr: 2e-3,
            ema_rates: vec![0.99],
            ..Default::default()
        },
        ..Default::default()
    };
    let mut trainer = block_on(Trainer::new(&device, images()?, options))?;
    for _ in 0..4 {
        let losses = block_on(trainer.train(50, &mut |_| ControlFlow::Continue(())))?;
        if let Some(losses) = losses {
            println!("step {}: loss {:.3}", losses.step, losses.loss);
        }
    }
    block_on(trainer.save(&file))?;
    println!("wrote {}", file.display());
    let mut generator = Generator::open(&device, &file)?;
    let request = DrawRequest { classes: Classes::All, steps: "10".into(), ..Default::default() };
    for image in block_on(generator.draw(&request))?.images() {
        let row: Vec<String> = image.pixels()[..SIZE].iter().map(u8::to_string).collect();
        println!("{}: first row {}", image.class_name.unwrap_or("?"), row.join(" "));
    }
    Ok(())
}
