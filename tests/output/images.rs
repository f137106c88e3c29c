//! PNG pictures.

use crate::support::*;
use demist::Error;
use demist::output::image as png_image;
use std::fs;
use std::io::BufReader;

#[test]
fn conversion_rounds_clamps_and_survives_a_round_trip() {
    // 0.5 is 191.25; 0.503 is 191.63, which truncation would make 191.
    let x = [-1.0, 1.0, 0.0, 0.5, 0.503, -3.0, 7.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    assert_eq!(png_image::to_u8(&x), [0, 255, 128, 191, 192, 0, 255, 0, 255, 0]);
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(png_image::to_u8(&png_image::from_u8(&all)), all);
}

#[test]
fn png_pixels_and_texts_read_back() {
    let dir = temp();
    for (channels, key) in [(3, "Software"), (1, "Comment")] {
        let path = dir.path().join("a.png");
        let pixels = pattern(7 * 5 * channels);
        let texts = [(key, "demist 0.1, caf\u{e9}"), ("demist:seed", "seed 1\nwörld → ∞")];
        png_image::save_png(&path, &pixels, 7, 5, channels, &texts).unwrap();
        let back = image::open(&path).unwrap();
        assert_eq!((back.width(), back.height()), (7, 5));
        assert_eq!(usize::from(back.color().channel_count()), channels);
        assert_eq!(back.as_bytes(), pixels);
        let want: Vec<(String, String)> =
            texts.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert_eq!(png_image::read_png_text(&path).unwrap(), want);
    }
    let bytes = fs::read(dir.path().join("a.png")).unwrap();
    let has = |kind: &[u8]| bytes.windows(4).any(|w| w == kind);
    assert!(has(b"tEXt") && has(b"iTXt"), "Latin-1 and wider texts have their own chunks");
}

#[test]
fn impossible_pngs_are_refused() {
    let sizes = [(3, 3, 3, 26), (3, 3, 2, 18), (0, 3, 1, 0), (usize::MAX, 2, 3, 6)];
    for (w, h, c, n) in sizes {
        let error = png_image::encode_png(&vec![0; n], w, h, c, &[]).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        assert!(error.to_string().contains(&format!("{h}x{w}x{c}")), "{error}");
    }
    let long = "k".repeat(80);
    for (key, value) in
        [("", "v"), (&long[..], "v"), ("a\u{4e00}", "v"), ("a\0b", "v"), (" a", "v"), ("a", "v\0")]
    {
        let error = png_image::encode_png(&[0], 1, 1, 1, &[(key, value)]).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{key:?}: {error}");
    }
}

#[test]
fn broken_pngs_are_errors() {
    let dir = temp();
    let path = dir.path().join("a.png");
    let good = png_image::encode_png(&pattern(48), 4, 4, 3, &[("a", "b")]).unwrap();
    for n in [0, 7, 20, 40] {
        fs::write(&path, &good[..n]).unwrap();
        let error = png_image::read_png_text(&path).unwrap_err();
        assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{n}: {error}");
    }
    let error = png_image::read_png_text(&dir.path().join("none.png")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
}

#[test]
fn pngs_are_read_by_the_png_library_without_warnings() {
    let bytes = png_image::encode_png(&pattern(12), 2, 2, 3, &[("a", "b")]).unwrap();
    let decoder = png::Decoder::new(BufReader::new(std::io::Cursor::new(bytes)));
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    reader.finish().unwrap();
    assert_eq!(pixels, pattern(12));
}
