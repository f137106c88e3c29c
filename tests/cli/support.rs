//! Runs the built program in folders of its own, and makes small data sets and
//! small trained networks for it.

// Each test file uses some of it.
#![allow(dead_code)]

use demist::checkpoint::TensorFile;
use demist::output::image::save_png;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Side of all test images.
pub const SIDE: usize = 16;

/// The smallest network that the model's rules allow, for two images a step.
pub const TINY: [&str; 8] =
    ["--num-channels", "32", "--channel-mult", "1,1", "--batch-size", "2", "--sample-every", "0"];

/// A run longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A temporary folder: the working folder of the programs started in it.
pub struct Place(tempfile::TempDir);

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// The program with this place as its working and runtime folder.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_demist"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env("XDG_RUNTIME_DIR", self.0.path())
            .env_remove("DEMIST_DEVICE")
            // Nothing of the user's is read or written.
            .env("DEMIST_CACHE", "")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        finish(self.command(args).spawn().unwrap())
    }

    /// Trains the tiny network for `steps` on `data` into `out`.
    pub fn train(&self, data: &str, out: &str, steps: &str, more: &[&str]) -> Outcome {
        let fixed = ["train", data, "--out", out, "--steps", steps];
        self.run(&[&fixed, &TINY[..], more].concat())
    }

    /// Runs `args`, which must fail with one line that mentions all `mentions`.
    pub fn refuse(&self, args: &[&str], mentions: &[&str]) {
        let outcome = self.run(args);
        outcome.expect_error(&format!("{args:?}"), mentions);
    }

    /// A copy of the shared network after `change`, by file name.
    pub fn changed_network(&self, name: &str, change: impl FnOnce(&mut TensorFile)) -> String {
        let mut file = TensorFile::read(&trained().join("network.safetensors")).unwrap();
        change(&mut file);
        file.write(&self.path(name)).unwrap();
        name.to_owned()
    }

    /// A copy of the shared network with `from` in its configuration made `to`.
    pub fn changed_config(&self, name: &str, from: &str, to: &str) -> String {
        self.changed_network(name, |file| {
            let json = file.metadata.get_mut("demist").unwrap();
            assert!(json.contains(from), "{from} is not in {json}");
            *json = json.replacen(from, to, 1);
        })
    }

    /// A copy of the shared run.
    pub fn copied_run(&self, name: &str) -> PathBuf {
        let target = self.folder(name);
        for file in ["state.safetensors", "network.safetensors", "metrics.csv"] {
            std::fs::copy(trained().join(file), target.join(file)).unwrap();
        }
        target
    }
}

impl Outcome {
    /// It succeeded.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }

    /// Exit code 1, and one line of error beside lines about the work.
    #[track_caller]
    pub fn expect_error(self, what: &str, mentions: &[&str]) {
        assert_eq!(self.code, Some(1), "{what}: {self:#?}");
        let informs = |line: &&str| {
            let kinds = ["device: ", "data: ", "skipped ", "WARNING: lavapipe"];
            !kinds.iter().any(|kind| line.starts_with(kind))
        };
        let left: Vec<&str> = self.stderr.lines().filter(informs).collect();
        assert_eq!(left.len(), 1, "{what}: {self:#?}");
        assert!(left[0].starts_with("error: "), "{what}: {self:#?}");
        assert!(!self.stderr.contains("panicked"), "{what}: {self:#?}");
        for mention in mentions {
            assert!(left[0].contains(mention), "{what} does not mention {mention}: {self:#?}");
        }
    }
}

/// Waits for `child` and collects what it says; a hanging one is ended.
pub fn finish(mut child: Child) -> Outcome {
    let drain = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut bytes).unwrap();
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = drain(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = drain(child.stderr.take().map(|p| Box::new(p) as _));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let status = status.unwrap_or_else(|| panic!("it hangs\n{stdout}\n{stderr}"));
    Outcome { code: status.code(), stdout, stderr }
}

/// Bytes of an image that differs with `seed`.
pub fn pixels(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed * 97) % 256) as u8).collect()
}

pub fn png(path: &Path, side: usize, channels: usize, seed: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixels = pixels(seed, side * side * channels);
    save_png(path, &pixels, side, side, channels, &[]).unwrap();
}

/// A PNG of which the second half is missing.
pub fn truncated_png(path: &Path) {
    png(path, SIDE, 3, 99);
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// An atlas of two cells for each of `classes`, in RGB.
pub fn atlas(folder: &Path, classes: &[&str]) {
    let cells = 2 * classes.len();
    // Without classes the picture is there, but no cell of it is used.
    let width = cells.max(1) * SIDE;
    let bytes = pixels(cells, width * SIDE * 3);
    save_png(&folder.join("atlas.png"), &bytes, width, SIDE, 3, &[]).unwrap();
    let runs: Vec<String> =
        classes.iter().map(|name| format!(r#"{{"name": {name:?}, "count": 2}}"#)).collect();
    let json = format!(
        r#"{{"size": {SIDE}, "cols": {}, "channels": 3, "classes": [{}]}}"#,
        cells.max(1),
        runs.join(", ")
    );
    std::fs::write(folder.join("atlas.json"), json).unwrap();
}

/// MNIST's layout with four grey images of the classes 0 to 3.
pub fn idx(folder: &Path) {
    let words = |values: &[u32]| values.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
    let images = [words(&[0x803, 4, 16, 16]), pixels(5, 4 * SIDE * SIDE)].concat();
    let labels = [words(&[0x801, 4]), vec![0, 1, 2, 3]].concat();
    std::fs::write(folder.join("train-images-idx3-ubyte"), images).unwrap();
    std::fs::write(folder.join("train-labels-idx1-ubyte"), labels).unwrap();
}

/// The run that the tests share: two steps on an atlas of cats and dogs.
/// `atlas.png` lies in it too. To be copied, never to be changed.
pub fn trained() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let folder = shared_folder("run");
        std::fs::create_dir_all(&folder).unwrap();
        atlas(&folder, &["cat", "dog"]);
        let data = folder.join("atlas.png");
        let place = Place::new();
        place.train(data.to_str().unwrap(), folder.to_str().unwrap(), "2", &[]).expect_success();
        folder
    })
}

/// Where a run that tests share goes: a place of this test program's own, without
/// what an earlier one left.
fn shared_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME")).join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    folder
}

/// A network that tests share, trained once for two steps on the cats and dogs;
/// `args` begin with the command.
pub fn shared(cell: &'static OnceLock<String>, name: &str, args: &[&str]) -> &'static str {
    cell.get_or_init(|| {
        let folder = shared_folder(name);
        let fixed = [cats_and_dogs(), "--out", folder.to_str().unwrap(), "--steps", "2"];
        let (command, more) = args.split_first().unwrap();
        Place::new().run(&[&[*command], &fixed[..], more].concat()).expect_success();
        folder.join("network.safetensors").to_str().unwrap().to_owned()
    })
}

/// A shared diffusion network with further options.
pub fn shared_unet(cell: &'static OnceLock<String>, name: &str, more: &[&str]) -> &'static str {
    shared(cell, name, &[&["train"], &TINY[..], more].concat())
}

/// The smallest classifier, for two images a step.
pub const TINY_CLASSIFIER: [&str; 6] =
    ["--classifier-width", "32", "--classifier-depth", "1", "--batch-size", "2"];

/// A shared classifier of noisy cats and dogs.
pub fn classifier() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    shared(&CELL, "classifier", &[&["train-classifier"], &TINY_CLASSIFIER[..]].concat())
}

/// The shared network's path.
pub fn network() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| trained().join("network.safetensors").to_str().unwrap().to_owned())
}

/// The shared run's data.
pub fn cats_and_dogs() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| trained().join("atlas.png").to_str().unwrap().to_owned())
}
