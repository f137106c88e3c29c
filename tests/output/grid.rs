//! Grids of images.

use crate::support::*;
use demist::Error;
use demist::output::{Grid, image as png_image};

#[test]
fn cells_are_enlarged_as_squares_with_white_gaps() {
    let images = pattern(3 * 16 * 16 * 3);
    let canvas = Grid::new(&images, [16, 16, 3], 2).render().unwrap();
    // 10 pixels of margin, cells of 4 x 16 pixels, 2 between them, 2 rows.
    assert_eq!((canvas.width, canvas.height), (20 + 2 * 64 + 2, 20 + 2 * 64 + 2));
    for (i, y, x) in [(0, 0, 0), (1, 3, 15), (2, 15, 7)] {
        let at = ((i * 16 + y) * 16 + x) * 3;
        let (left, top) = (10 + i % 2 * 66 + x * 4, 10 + i / 2 * 66 + y * 4);
        for d in 0..4 {
            assert_eq!(canvas.pixel(left + d, top + d).unwrap(), images[at..at + 3]);
        }
    }
    let white = Some([255; 3]);
    assert_eq!(canvas.pixel(10 + 64, 40), white, "the gap");
    assert_eq!(canvas.pixel(0, 0), white, "the margin");
    assert_eq!(canvas.pixel(10 + 66 + 30, 10 + 66 + 30), white, "the missing fourth image");
    assert_eq!(canvas.pixel(canvas.width, 0), None);
}

#[test]
fn scale_and_grey_images() {
    let images = [0, 50, 100, 150, 200, 250];
    let canvas = Grid::new(&images, [2, 3, 1], 5).scale(3).render().unwrap();
    assert_eq!((canvas.width, canvas.height), (20 + 9, 20 + 6));
    assert_eq!(canvas.pixel(10 + 5, 10 + 4), Some([200; 3]));
    let large = vec![9; 70 * 70];
    let canvas = Grid::new(&large, [70, 70, 1], 1).render().unwrap();
    assert_eq!(canvas.width, 20 + 70, "large images keep their size");
}

#[test]
fn labels_title_and_footer_are_drawn_in_their_own_room() {
    let images = vec![255; 4 * 16 * 16 * 3];
    let plain = || Grid::new(&images, [16, 16, 3], 2);
    let ink = |grid: Grid| {
        let c = grid.render().unwrap();
        let dark = c.pixels.chunks_exact(3).enumerate().filter(|(_, p)| p[0] < 128);
        let at: Vec<(usize, usize)> = dark.map(|(i, _)| (i % c.width, i / c.width)).collect();
        (at, c.width, c.height)
    };
    let (none, width, height) = ink(plain());
    assert!(none.is_empty(), "white images on white");

    let (rows, w, h) = ink(plain().row_labels(["hat", "beard"]));
    assert!(w > width && h == height);
    assert!(rows.iter().all(|&(x, _)| x >= 10 && x < w - 10 - 130), "left of the images");
    let upper = rows.iter().filter(|&&(_, y)| y < 10 + 65).count();
    assert!(upper > 20 && rows.len() > 2 * upper, "the longer word below has more ink");

    let (columns, w, h) = ink(plain().column_labels(["hat", "a name beyond any cell's width"]));
    assert!(w == width && h > height);
    assert!(columns.iter().all(|&(_, y)| y < h - 10 - 130), "above the images");
    assert!(columns.iter().all(|&(x, _)| x >= 10 && x < w - 10), "shortened, not cut");

    let (title, w, h) = ink(plain().title("Samples"));
    assert!(w == width && h > height);
    assert!(title.len() > 50 && title.iter().all(|&(_, y)| y < h - 10 - 130));

    let long = "seed 0, ".repeat(30);
    let (footer, w, h) = ink(plain().footer(long));
    assert!(w > width && w < 600 && h > height + 40, "wrapped: {w}x{h}");
    assert!(footer.iter().all(|&(x, y)| x < w - 5 && y >= 10 + 130 && y < h - 5));
}

#[test]
fn impossible_grids_are_refused() {
    let images = vec![0; 4 * 12];
    let bad = [
        Grid::new(&images, [2, 2, 3], 0),
        Grid::new(&images[1..], [2, 2, 3], 2),
        Grid::new(&images[..0], [2, 2, 3], 2),
        Grid::new(&images, [2, 3, 2], 2),
        Grid::new(&images, [0, 2, 3], 2),
        Grid::new(&images, [usize::MAX, usize::MAX, 3], 2),
        Grid::new(&images, [2, 2, 3], 2).scale(0),
        Grid::new(&images, [2, 2, 3], 2).scale(1_000_000),
        Grid::new(&images, [2, 2, 3], 2).scale(usize::MAX),
        Grid::new(&images, [2, 2, 3], 2).row_labels(["a", "b", "c"]),
        Grid::new(&images, [2, 2, 3], 2).column_labels(["a", "b", "c"]),
    ];
    for grid in bad {
        let error = grid.render().unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}

#[test]
fn a_saved_grid_says_how_it_was_made() {
    let dir = temp();
    let path = dir.path().join("grid.png");
    let images = pattern(2 * 8 * 8 * 3);
    let grid = Grid::new(&images, [8, 8, 3], 2).title("Two").row_labels(["a"]);
    grid.save(&path, &[("demist:seed", "7")]).unwrap();
    assert_eq!(png_image::read_png_text(&path).unwrap(), [("demist:seed".into(), "7".into())]);
    let canvas = grid.render().unwrap();
    assert_eq!(image::open(&path).unwrap().as_bytes(), canvas.pixels);
}
