//! What the program writes: atomic files, images, grids, plots, metrics and
//! NumPy archives, read back with other libraries where there are any.

use std::fs;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use demist::Error;
use demist::files::atomic;
use demist::output::metrics::{Metrics, MetricsWriter};
use demist::output::plot::{self, Series, Style};
use demist::output::{Grid, image as png_image, npz};

/// The only file in a folder, so that left-over temporaries are noticed.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn assert_io_names(error: &Error, path: &Path) {
    assert!(matches!(error, Error::Io { path: p, .. } if p == path), "{error:?}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

/// A picture with a different value in every byte of the first rows.
fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 37 % 251) as u8).collect()
}

// ---- atomic ----

#[test]
fn a_write_creates_and_replaces_and_leaves_nothing_else() {
    let dir = temp();
    let path = dir.path().join("a.bin");
    atomic::write(&path, b"one").unwrap();
    atomic::write(&path, b"two!").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two!");
    assert_eq!(names(dir.path()), ["a.bin"]);
}

#[test]
fn a_failed_write_keeps_the_old_file() {
    let dir = temp();
    let path = dir.path().join("a.bin");
    atomic::write(&path, b"old").unwrap();
    let error = atomic::write_with(&path, |w| {
        w.write_all(&[7; 100_000])?;
        Err(std::io::Error::other("broke off"))
    })
    .unwrap_err();
    assert_io_names(&error, &path);
    assert!(error.to_string().contains("broke off"));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["a.bin"]);
}

#[test]
fn impossible_targets_are_errors_that_name_them() {
    let dir = temp();
    let missing = dir.path().join("no/such/a.bin");
    let error = atomic::write(&missing, b"x").unwrap_err();
    assert_io_names(&error, &missing);
    assert!(error.to_string().contains("there is no folder"), "{error}");

    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let below = file.join("a.bin");
    assert_io_names(&atomic::write(&below, b"x").unwrap_err(), &below);

    let error = atomic::write(dir.path(), b"x").unwrap_err();
    assert_io_names(&error, dir.path());
    assert!(error.to_string().contains("folder"), "{error}");
    assert!(atomic::write(Path::new(""), b"x").is_err());
    assert_eq!(names(dir.path()), ["file"]);
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_get_the_usual_mode_and_keep_their_own() {
        let dir = temp();
        let (ours, usual) = (dir.path().join("ours"), dir.path().join("usual"));
        atomic::write(&ours, b"x").unwrap();
        fs::write(&usual, b"x").unwrap();
        assert_eq!(mode(&ours), mode(&usual));
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o640)).unwrap();
        atomic::write(&ours, b"y").unwrap();
        assert_eq!(mode(&ours), 0o640);
    }

    #[test]
    fn a_read_only_folder_is_named() {
        let dir = temp();
        let folder = dir.path().join("locked");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
        // The superuser may write everywhere: ask the system what holds here.
        let allowed = fs::write(folder.join("probe"), "x").is_ok();
        let path = folder.join("a.bin");
        let result = atomic::write(&path, b"x");
        assert_eq!(result.is_ok(), allowed);
        if let Err(error) = result {
            assert_io_names(&error, &path);
            assert!(error.to_string().contains("cannot write in the folder"), "{error}");
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn links_are_followed_and_devices_refused() {
        let dir = temp();
        fs::create_dir(dir.path().join("data")).unwrap();
        let (real, link) = (dir.path().join("data/real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        symlink("data/real", &link).unwrap();
        atomic::write(&link, b"new").unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let null = Path::new("/dev/null");
        assert_io_names(&atomic::write(null, b"x").unwrap_err(), null);
    }
}

// ---- images ----

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

// ---- grid ----

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

// ---- plot ----

/// Draws a plot and returns its pixels.
fn plotted(draw: impl Fn(&Path) -> demist::Result<()>) -> image::RgbImage {
    let dir = temp();
    let path = dir.path().join("plot.png");
    draw(&path).unwrap();
    let picture = image::open(&path).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (900, 500));
    picture
}

/// Rows (y) of the pixels in column `x` that have the full colour of series 0.
fn strong(picture: &image::RgbImage, x: u32) -> Vec<u32> {
    (0..500).filter(|&y| picture.get_pixel(x, y).0 == [0, 114, 178]).collect()
}

#[test]
fn a_line_goes_where_its_points_say() {
    // y = x from 0 to 10: the line rises evenly across the plotting area.
    let points: Vec<(f64, f64)> = (0..=10).map(|i| (f64::from(i), f64::from(i))).collect();
    let picture = plotted(|p| {
        let line = Series { name: "line", points: points.clone(), style: Style::Strong(0) };
        plot::line_plot(p, "Title", "x", "y", &[line])
    });
    let middle = |x| {
        let rows = strong(&picture, x);
        assert!(!rows.is_empty(), "no line at {x}");
        f64::from(rows.iter().sum::<u32>()) / rows.len() as f64
    };
    let (a, b, c) = (middle(200), middle(450), middle(700));
    assert!(a > b && b > c);
    assert!(((a - b) - (b - c)).abs() < 2.0, "{a} {b} {c}");
    let labels = (0..70).flat_map(|x| (0..450).map(move |y| (x, y)));
    assert!(labels.filter(|&(x, y)| picture.get_pixel(x, y).0[0] < 130).count() > 60);
}

#[test]
fn a_wide_range_is_logarithmic() {
    // 10^-x is straight on a logarithmic axis only.
    let points: Vec<(f64, f64)> =
        (0..=100).map(|i| (f64::from(i), 10f64.powf(-f64::from(i) / 20.0))).collect();
    let picture = plotted(|p| {
        let line = Series { name: "line", points: points.clone(), style: Style::Strong(0) };
        plot::line_plot(p, "Title", "x", "y", &[line])
    });
    let at = |x| f64::from(strong(&picture, x)[0]);
    let (a, b, c) = (at(200), at(450), at(700));
    assert!(a < b && ((b - a) - (c - b)).abs() < 3.0, "{a} {b} {c}");
}

#[test]
fn rows_that_are_not_finite_change_nothing() {
    let clean: Vec<(f64, f64)> = (1..50).map(|i| (f64::from(i), 1.0 / f64::from(i))).collect();
    let mut dirty = clean.clone();
    dirty.insert(3, (3.5, f64::NAN));
    dirty.insert(9, (8.5, f64::INFINITY));
    dirty.push((f64::NAN, 1.0));
    dirty.push((60.0, f64::NEG_INFINITY));
    assert_eq!(plot::smooth(&clean), plot::smooth(&dirty));
    let draw = |rows: &[(f64, f64)]| plotted(|p| plot::loss_plot(p, "Loss", rows, None));
    assert_eq!(draw(&clean), draw(&dirty));
}

#[test]
fn few_and_extreme_rows_make_a_plot() {
    let one = plotted(|p| plot::loss_plot(p, "One", &[(3.0, 0.5)], None));
    assert!((80..870).any(|x| strong(&one, x).len() > 4), "a dot");
    let none = plotted(|p| plot::loss_plot(p, "None", &[], None));
    assert_eq!(none, plotted(|p| plot::loss_plot(p, "None", &[(1.0, f64::NAN)], None)));
    for rows in [
        vec![(0.0, 0.0), (1.0, 0.0)],
        vec![(0.0, -5.0), (1.0, 100.0)],
        vec![(0.0, 1e-300), (1.0, 1e299)],
        vec![(0.0, -1e299), (1.0, 1e299), (2.0, f64::MAX)],
        vec![(5.0, 1e15), (5.0, 1e15 + 1.0)],
        vec![(0.0, f64::MIN_POSITIVE / 1e10), (1e18, 1.0)],
    ] {
        plotted(|p| plot::loss_plot(p, "Extreme\ntitle \u{4e00}", &rows, None));
    }
    let many: Vec<(f64, f64)> =
        (0..300_000).map(|i| (f64::from(i), 1.0 + f64::from(i % 7))).collect();
    plotted(|p| plot::loss_plot(p, "Many", &many, None));
}

#[test]
fn smoothing_keeps_levels_and_does_not_lag() {
    let flat: Vec<(f64, f64)> = (0..500).map(|i| (f64::from(i), 3.0)).collect();
    assert!(plot::smooth(&flat).iter().all(|(_, y)| (y - 3.0).abs() < 1e-12));
    let slope: Vec<(f64, f64)> = (0..600).map(|i| (f64::from(i), f64::from(i))).collect();
    let (x, y) = plot::smooth(&slope)[300];
    assert_eq!(x, 300.0);
    assert!((y - 300.0).abs() < 1e-3, "a straight line stays where it is: {y}");
    let saw: Vec<(f64, f64)> = (0..600).map(|i| (f64::from(i), f64::from(i % 2))).collect();
    assert!((plot::smooth(&saw)[301].1 - 0.5).abs() < 0.06);
}

// ---- metrics ----

fn metrics_file() -> (tempfile::TempDir, PathBuf) {
    let dir = temp();
    let path = dir.path().join("metrics.csv");
    (dir, path)
}

#[test]
fn rows_are_visible_at_once_and_read_back() {
    let (_dir, path) = metrics_file();
    let mut w = MetricsWriter::create(&path, &["loss", "grad_norm", "seconds"]).unwrap();
    w.append(10, &[f64::from(0.1f32), f64::NAN, 12.0]).unwrap();
    w.append(20, &[1e-9, f64::INFINITY, 1.0 / 3.0]).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text, "step,loss,grad_norm,seconds\n10,0.1,,12\n20,1e-9,inf,0.3333333333333333\n");
    let m = Metrics::read(&path).unwrap();
    assert_eq!(m.columns, ["loss", "grad_norm", "seconds"]);
    assert_eq!(m.column("seconds").unwrap(), [12.0, 1.0 / 3.0]);
    assert_eq!(m.points("loss").unwrap(), [(10.0, 0.1), (20.0, 1e-9)]);
    assert_eq!(m.points("grad_norm").unwrap(), [(20.0, f64::INFINITY)]);
    assert_eq!(m.column("none"), None);
    assert!(matches!(w.append(30, &[1.0]), Err(Error::Shape { .. })));
}

#[test]
fn resuming_drops_later_rows_and_a_torn_line() {
    let (_dir, path) = metrics_file();
    fs::write(&path, "step,loss\n1,0.5\n2,0.4\n3,0.3\n4,0.2").unwrap();
    assert_eq!(Metrics::read(&path).unwrap().rows.len(), 3, "the torn row 4 is left out");
    let mut w = MetricsWriter::resume(&path, &["loss"], 2).unwrap();
    w.append(3, &[0.25]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss\n1,0.5\n2,0.4\n3,0.25\n");
    // A torn line is dropped even if no row is: the next row must start a line.
    fs::write(&path, "step,loss\n1,0.5\n2,0.").unwrap();
    MetricsWriter::resume(&path, &["loss"], 9).unwrap().append(2, &[7.0]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss\n1,0.5\n2,7\n");
}

#[test]
fn resuming_without_a_file_or_with_other_columns() {
    let (_dir, path) = metrics_file();
    MetricsWriter::resume(&path, &["loss"], 5).unwrap().append(6, &[1.0]).unwrap();
    let mut w = MetricsWriter::resume(&path, &["fid", "loss"], 6).unwrap();
    w.append(7, &[30.5, 0.5]).unwrap();
    let mut w = MetricsWriter::resume(&path, &["fid"], 7).unwrap();
    w.append(8, &[20.0]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss,fid\n6,1,\n7,0.5,30.5\n8,,20\n");
    fs::write(&path, "").unwrap();
    MetricsWriter::resume(&path, &["loss"], 6).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss\n");
}

#[test]
fn files_that_are_no_metrics_are_refused_and_kept() {
    let (dir, path) = metrics_file();
    let cases: [&[u8]; 5] = [
        b"time,loss\n1,2\n",
        b"step,loss\n1,x\n2,3\n",
        b"step,loss\n1,2,3\n2,3\n",
        b"step,loss\n-1,2\n",
        b"step,\xff\n1,2\n",
    ];
    for bytes in cases {
        fs::write(&path, bytes).unwrap();
        for error in [
            Metrics::read(&path).unwrap_err(),
            MetricsWriter::resume(&path, &["loss"], 9).unwrap_err(),
        ] {
            assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    fs::write(&path, "step,loss\n1,2\n3,oops\n").unwrap();
    assert!(Metrics::read(&path).unwrap_err().to_string().contains("line 3"));
    assert!(matches!(Metrics::read(dir.path()), Err(Error::Io { .. })));
    for columns in [&["a,b"][..], &[""], &["step"], &["a", "a"], &["a\nb"]] {
        let made = MetricsWriter::create(&dir.path().join("new.csv"), columns);
        assert!(matches!(made, Err(Error::Config(_))), "{columns:?}");
    }
    assert_eq!(names(dir.path()), ["metrics.csv"]);
}

// ---- npz ----

/// A sound zip archive with one array, made of a header and data.
fn archive(path: &Path, name: &str, header: &str, data: &[u8]) {
    let mut zip = npyz::zip::ZipWriter::new(fs::File::create(path).unwrap());
    zip.start_file(name, npyz::zip::write::FileOptions::default()).unwrap();
    let header = format!("{header}\n");
    zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
    zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    zip.write_all(header.as_bytes()).unwrap();
    zip.write_all(data).unwrap();
    zip.finish().unwrap();
}

#[test]
fn samples_read_back_with_and_without_labels() {
    let dir = temp();
    let path = dir.path().join("samples.npz");
    let images = pattern(3 * 4 * 5 * 3);
    let labels = [7, -1, i64::MAX];
    for given in [Some(&labels[..]), None] {
        npz::save_samples(&path, &images, [3, 4, 5, 3], given).unwrap();
        // The date of the first entry: none (1980-01-01), so equal samples are equal files.
        assert_eq!(fs::read(&path).unwrap()[10..14], [0, 0, 0x21, 0]);
        let mut archive = npyz::npz::NpzArchive::open(&path).unwrap();
        assert_eq!(archive.array_names().count(), 1 + usize::from(given.is_some()));
        let array = archive.by_name("arr_0").unwrap().unwrap();
        assert_eq!((array.shape(), array.order()), (&[3, 4, 5, 3][..], npyz::Order::C));
        assert_eq!(array.dtype().descr(), "'|u1'");
        assert_eq!(array.into_vec::<u8>().unwrap(), images);
        if given.is_some() {
            let array = archive.by_name("arr_1").unwrap().unwrap();
            assert_eq!(array.dtype().descr(), "'<i8'");
            assert_eq!(array.into_vec::<i64>().unwrap(), labels);
        }
        let samples = npz::load_samples(&path).unwrap();
        assert_eq!((&samples.images, samples.shape), (&images, [3, 4, 5, 3]));
        assert_eq!(samples.labels.as_deref(), given);
    }
}

#[test]
fn a_numpy_archive_with_compression_is_read() {
    // numpy.savez_compressed(f, arange(24, uint8).reshape(2, 2, 2, 3), array([1, 2]))
    let samples = npz::load_samples(Path::new("tests/data/numpy_compressed.npz")).unwrap();
    assert_eq!(samples.images, (0..24).collect::<Vec<u8>>());
    assert_eq!(samples.shape, [2, 2, 2, 3]);
    assert_eq!(samples.labels, Some(vec![1, 2]));
}

#[test]
fn sizes_that_disagree_are_refused() {
    let dir = temp();
    let path = dir.path().join("samples.npz");
    for (shape, labels) in [([1, 2, 2, 3], None), ([2, 2, 2, 3], Some(&[1][..]))] {
        let error = npz::save_samples(&path, &[0; 24], shape, labels).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
    let error = npz::save_samples(&path, &[], [usize::MAX, 2, 2, 3], None).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn broken_archives_are_errors_that_name_the_fault() {
    let dir = temp();
    let path = dir.path().join("samples.npz");
    let fails_with = |what: &str| {
        let error = npz::load_samples(&path).unwrap_err();
        assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error}");
        assert!(error.to_string().contains(what), "{error} lacks {what:?}");
    };
    let dict = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}")
    };
    let u1 = "'|u1'";
    let nested = format!("{}1{}", "(".repeat(30_000), ")".repeat(30_000));
    for (header, what) in [
        (dict(u1, "False", "(2, 2, 6)"), "the shape [2, 2, 6]"),
        (dict(u1, "False", "(2, 2, 2, 4)"), "`arr_0`"),
        (dict(u1, "False", "(2, 2, 2, 2)"), "goes on beyond its shape"),
        (dict(u1, "False", "(9999999, 9999999, 9, 9)"), "`arr_0`"),
        (dict(u1, "False", "(99999999999, 99999999999, 1, 1)"), "a plain array"),
        (dict(u1, "False", "(0, 99999999999, 99999999999, 1)"), "a plain array"),
        (dict(u1, "False", "(-1, 2, 2, 3)"), "a plain array"),
        (dict(u1, "False", &nested), "a plain array"),
        (dict("[('a', '|u1')]", "False", "(2, 2, 2, 3)"), "a plain array"),
        (dict("'|i1'", "False", "(2, 2, 2, 3)"), "uint8 is needed"),
        (dict(u1, "True", "(2, 2, 2, 3)"), "Fortran"),
        ("(1,".into(), "a plain array"),
        ("{'shape': (24,)}".into(), "not a usable .npz"),
    ] {
        archive(&path, "arr_0.npy", &header, &pattern(24));
        fails_with(what);
    }
    archive(&path, "arr_0.npy", &dict(u1, "False", "(2, 2, 2, 3)"), &pattern(24));
    assert_eq!(npz::load_samples(&path).unwrap().images, pattern(24));
    archive(&path, "other.npy", &dict(u1, "False", "(2, 2, 2, 3)"), &pattern(24));
    fails_with("no array `arr_0`");

    npz::save_samples(&path, &pattern(24), [2, 2, 2, 3], None).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(24).position(|w| w == pattern(24)).unwrap();
    bytes[at + 5] ^= 1;
    fs::write(&path, bytes).unwrap();
    fails_with("checksum");
    fs::write(&path, "no archive").unwrap();
    fails_with("not a usable .npz");
    assert!(matches!(npz::load_samples(&dir.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn mutated_archives_never_panic() {
    let dir = temp();
    let path = dir.path().join("samples.npz");
    npz::save_samples(&path, &pattern(24), [2, 2, 2, 3], Some(&[1, 2])).unwrap();
    let good = fs::read(&path).unwrap();
    let mut state = 1u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut refused = 0;
    for round in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random(3) {
            let at = random(bytes.len());
            bytes[at] = [0, 255, b'9', b'(', random(256) as u8][random(5)];
        }
        if round % 4 == 0 {
            bytes.truncate(random(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        refused += usize::from(npz::load_samples(&path).is_err());
    }
    assert!(refused > 1000, "{refused}");
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
