//! No op without a test: the ops are read from the sources (what `src/ops`
//! exports, and [`demist::reference::OPS`]), the tests are searched for them.

use demist::reference::OPS;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Op files without a twin of their name in `src/reference`, and what their
/// tests compare with instead.
const OTHER_TWIN: [(&str, &str); 1] = [("gaussian", "demist::engine::rng::fill_normal_batch")];

/// A file whose kernel several ops share. It is tested through them.
const SHARED: &str = "sum_rows";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "rs"));
    files.sort();
    files
}

/// The source without its line comments, so that prose mentions nothing.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.lines().map(|l| l.split_once("//").map_or(l, |(before, _)| before));
    code.collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The names directly below `module` that `code` uses: `module::name` and
/// `module::{name, other::.., third as x}`.
fn names_below(module: &str, code: &str) -> BTreeSet<String> {
    let path = format!("{module}::");
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(&path) {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_names(group)),
            None => names.extend(first_word(rest)),
        }
    }
    names
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.trim_start().chars().take_while(|c| is_word(*c)).collect();
    (!word.is_empty()).then_some(word)
}

/// First segments of the entries of a `use` group, whose `{` is already gone.
fn group_names(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut entries = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => entries.push(String::new()),
            c => entries.last_mut().unwrap().push(c),
        }
    }
    entries.iter().filter_map(|e| first_word(e)).collect()
}

/// The name and the source of each file and each folder of `src/ops`. A folder is one op, and
/// its files are parts of it.
fn op_sources() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(root().join("src/ops")).unwrap();
    let source = |path: PathBuf| {
        let files = if path.is_dir() { rust_files(&path) } else { vec![path.clone()] };
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, files.iter().map(|file| code(file)).collect::<Vec<_>>().join("\n"))
    };
    entries.map(|e| source(e.unwrap().path())).collect()
}

/// For each op file of `src/ops` the functions that it exports.
fn exported() -> BTreeMap<String, Vec<String>> {
    let uses = code(&root().join("src/ops/mod.rs"));
    let mut exported = BTreeMap::new();
    for statement in uses.split(';').filter_map(|s| s.trim().strip_prefix("pub use ")) {
        let (module, names) = statement.split_once("::").unwrap();
        let names = match names.strip_prefix('{') {
            Some(group) => group_names(group),
            None => vec![names.to_owned()],
        };
        // Types and constants are no ops.
        let functions = names.into_iter().filter(|n| n.starts_with(char::is_lowercase)).collect();
        exported.insert(module.to_owned(), functions);
    }
    exported
}

/// What the test files use below `ops` and below `reference`.
fn tested(module: &str) -> BTreeSet<String> {
    let own = Path::new(file!()).file_name().unwrap();
    rust_files("tests")
        .iter()
        .filter(|path| path.file_name() != Some(own))
        .map(|path| code(path))
        .filter(|code| code.contains("#[test]"))
        .flat_map(|code| names_below(module, &code))
        .collect()
}

#[test]
fn every_exported_op_is_tested() {
    let exported = exported();
    assert!(exported.len() >= OPS.len(), "too few exports were found: {exported:?}");
    // An op that runs as a part of another is tested through its own twin.
    let tested: BTreeSet<_> = tested("ops").union(&tested("reference")).cloned().collect();
    let missing: Vec<_> =
        exported.values().flatten().filter(|name| !tested.contains(*name)).collect();
    assert!(missing.is_empty(), "no file in tests/ uses ops::{missing:?}");
}

#[test]
fn every_twin_is_compared_with() {
    let tested = tested("reference");
    let missing: Vec<_> = OPS.iter().filter(|name| !tested.contains(**name)).collect();
    assert!(missing.is_empty(), "no file in tests/ uses reference::{missing:?}");
}

#[test]
fn every_file_with_a_kernel_exports_an_op_and_has_a_twin() {
    let exported = exported();
    let sources = op_sources();
    let has_kernel = |code: &str| [": Kernel = ", "KernelOf::new"].iter().any(|k| code.contains(k));
    assert!(has_kernel(&sources["conv2d"]) && has_kernel(&sources["add"]));
    for (name, code) in &sources {
        let name = name.as_str();
        if [SHARED, "mod"].contains(&name) || !has_kernel(code) {
            continue;
        }
        let functions = exported.get(name).map_or(0, Vec::len);
        assert!(functions > 0, "src/ops/{name}.rs launches a kernel but exports no function");
        let twin = OPS.contains(&name) || OTHER_TWIN.iter().any(|(op, _)| *op == name);
        assert!(twin, "src/ops/{name}.rs has no twin in src/reference");
    }
    for (op, twin) in OTHER_TWIN {
        let last = twin.rsplit("::").next().unwrap();
        let compared = rust_files("tests").iter().map(|p| code(p)).any(|code| {
            names_below("ops", &code).contains(op) && names_below("rng", &code).contains(last)
        });
        assert!(compared, "no file in tests/ compares ops::{op} with {twin}");
    }
}

#[test]
fn the_search_sees_paths_and_groups_only() {
    let code =
        "use demist::engine::ops::{add, self, x::y, mul as m}; ops::silu(g); props::no(1); ops ::z";
    let found: Vec<_> = names_below("ops", code).into_iter().collect();
    assert_eq!(found, ["add", "mul", "self", "silu", "x"]);
    assert!(names_below("ops", "let conv2d = 1;").is_empty());
}
