//! [`Drawn`]: the images that a network drew.

use crate::output::image::to_u8;

/// Images of one size, with what they are images of.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// `[count, size, size, channels]`: rows first, channels last. Pixels in about -1..=1,
    /// or latents where [`Sampler::DdimReverse`](crate::diffusion::Sampler) was followed.
    pub values: Vec<f32>,
    /// Number of images.
    pub count: usize,
    /// Side of the square images in pixels.
    pub size: usize,
    /// 1 for grey, 3 for RGB.
    pub channels: usize,
    /// Class number of each image; empty where there are no classes.
    pub labels: Vec<u32>,
    /// Class name of each image (its number where classes have no names); empty where
    /// there are no classes.
    pub class_names: Vec<String>,
}

/// One image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Image<'a> {
    /// Its number: the same request, seed and number are the same image.
    pub number: usize,
    /// Its class.
    pub class: Option<u32>,
    /// Name of the class.
    pub class_name: Option<&'a str>,
    /// `[size, size, channels]`, see [`Drawn::values`].
    pub values: &'a [f32],
}

impl Drawn {
    /// All images as bytes `[count, size, size, channels]`, 0 to 255.
    pub fn pixels(&self) -> Vec<u8> {
        to_u8(&self.values)
    }

    /// The images, one after the other.
    pub fn images(&self) -> impl Iterator<Item = Image<'_>> {
        let len = self.size * self.size * self.channels;
        self.values.chunks(len.max(1)).enumerate().map(|(number, values)| Image {
            number,
            class: self.labels.get(number).copied(),
            class_name: self.class_names.get(number).map(String::as_str),
            values,
        })
    }
}

impl Image<'_> {
    /// The image as bytes `[size, size, channels]`, 0 to 255.
    pub fn pixels(&self) -> Vec<u8> {
        to_u8(self.values)
    }
}
