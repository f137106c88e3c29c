//! The structure of the code: which module may import which, as the table in
//! ARCHITECTURE.md says, and that no files import each other in a circle.
//!
//! Every file of `src` is parsed. A path counts wherever it stands: in `use`, in code, in
//! a macro. `#[cfg(test)]` modules do not count, nor does a `pub use`, which only hands on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::visit::Visit;

/// A module by its path: ["graph", "plan"].
type Module = Vec<String>;

/// A file of the crate.
struct Source {
    module: Module,
    /// Whether it belongs to the program, whose `crate` is `main.rs`.
    program: bool,
    file: PathBuf,
    /// Absolute paths that it names.
    paths: BTreeSet<Vec<String>>,
    /// What it hands on: a name, and the absolute path behind it.
    exports: BTreeMap<String, Vec<String>>,
}

/// Collects the paths of one file.
struct Paths<'a> {
    module: &'a [String],
    program: bool,
    children: BTreeSet<String>,
    found: BTreeSet<Vec<String>>,
    exports: BTreeMap<String, Vec<String>>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` with the ending .rs.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

/// The module that a file is: `src/graph/plan.rs` is graph::plan, `src/graph/mod.rs` graph.
fn module_of(file: &Path) -> Module {
    let below = file.strip_prefix(root().join("src")).unwrap().with_extension("");
    let mut names: Module = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if matches!(names.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        names.pop();
    }
    names
}

impl Paths<'_> {
    /// The absolute form of a path, if it leads into this crate.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let mut base = match first.as_str() {
            // The program sees the library as a crate of its own.
            "demist" if self.program => vec!["demist".to_owned()],
            "crate" => Vec::new(),
            "self" => self.module.to_vec(),
            "super" => self.module[..self.module.len().checked_sub(1)?].to_vec(),
            child if self.children.contains(child) => [self.module, &[child.to_owned()]].concat(),
            _ => return None,
        };
        let mut rest = rest;
        while rest.first().is_some_and(|s| s == "super") {
            base.pop();
            rest = &rest[1..];
        }
        base.extend(rest.iter().cloned());
        Some(base)
    }

    fn note(&mut self, path: &[String]) {
        self.found.extend(self.absolute(path));
    }

    fn note_use(&mut self, tree: &syn::UseTree, before: &[String], public: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        let (path, name) = match tree {
            syn::UseTree::Path(p) => return self.note_use(&p.tree, &with(&p.ident), public),
            syn::UseTree::Group(g) => {
                return g.items.iter().for_each(|t| self.note_use(t, before, public));
            }
            syn::UseTree::Name(n) if n.ident == "self" => (before.to_vec(), before.last().cloned()),
            syn::UseTree::Name(n) => (with(&n.ident), Some(n.ident.to_string())),
            syn::UseTree::Rename(r) => (with(&r.ident), Some(r.rename.to_string())),
            syn::UseTree::Glob(_) => (before.to_vec(), None),
        };
        match (public, name, self.absolute(&path)) {
            (true, Some(name), Some(path)) => {
                self.exports.insert(name, path);
            }
            _ => self.note(&path),
        }
    }

    /// Paths among the tokens of a macro: `a::b::c`.
    fn note_tokens(&mut self, tokens: proc_macro2::TokenStream) {
        use proc_macro2::TokenTree::{Group, Ident, Punct};
        let mut path: Vec<String> = Vec::new();
        let (mut colons, mut after_pub) = (0, false);
        for token in tokens {
            // As in `pub(in path)`.
            let is_pub = matches!(&token, Ident(name) if name == "pub");
            match &token {
                Ident(name) if colons == 2 || path.is_empty() => path.push(name.to_string()),
                Ident(name) => {
                    self.note(&path);
                    path = vec![name.to_string()];
                }
                Punct(p) if p.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                _ => {
                    self.note(&path);
                    path.clear();
                }
            }
            colons = 0;
            if let Group(group) = token
                && !after_pub
            {
                self.note_tokens(group.stream());
            }
            after_pub = is_pub;
        }
        self.note(&path);
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let of_tests = item.attrs.iter().any(|a| {
            a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|i| i == "test")
        });
        if !of_tests {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let public = !matches!(item.vis, syn::Visibility::Inherited);
        self.note_use(&item.tree, &[], public);
    }

    /// `pub(in path)` tells who may see something, and imports nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if names.len() > 1 {
            self.note(&names);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.visit_path(&mac.path);
        self.note_tokens(mac.tokens.clone());
    }
}

/// All files of the crate, with what they name.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    files(&root().join("src"), &mut found);
    let modules: BTreeSet<Module> = found.iter().map(|f| module_of(f)).collect();
    let read = |file: PathBuf| {
        let module = module_of(&file);
        let program =
            file.ends_with("src/main.rs") || module.first().is_some_and(|m| m == "commands");
        let children = modules
            .iter()
            .filter(|m| m.len() == module.len() + 1 && m.starts_with(&module))
            .filter_map(|m| m.last().cloned())
            .collect();
        let text = std::fs::read_to_string(&file).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (found, exports) = Default::default();
        let mut paths = Paths { module: &module, program, children, found, exports };
        paths.visit_file(&syntax);
        let Paths { found, exports, .. } = paths;
        Source { module, program, file, paths: found, exports }
    };
    found.into_iter().map(read).collect()
}

/// The file in which what `path` names is defined: the deepest module of the path,
/// and from there on what that module hands on.
fn target<'a>(sources: &'a [Source], program: bool, path: &[String]) -> Option<&'a Source> {
    let (program, path) = match path.split_first() {
        Some((first, rest)) if first == "demist" => {
            // `engine` only gathers modules of the root.
            (false, rest.strip_prefix(&["engine".to_owned()]).unwrap_or(rest))
        }
        _ => (program, path),
    };
    let module = (0..=path.len())
        .rev()
        .find_map(|len| sources.iter().find(|s| s.module == path[..len] && s.program == program))?;
    let behind = path.get(module.module.len()).and_then(|name| module.exports.get(name));
    match behind {
        Some(behind) => target(sources, program, behind).or(Some(module)),
        None => Some(module),
    }
}

/// Which file imports which.
fn arrows(sources: &[Source]) -> BTreeSet<(usize, usize)> {
    let index = |wanted: &Source| sources.iter().position(|s| std::ptr::eq(s, wanted)).unwrap();
    let mut all = BTreeSet::new();
    for (from, source) in sources.iter().enumerate() {
        for path in &source.paths {
            if let Some(to) = target(sources, source.program, path).map(index)
                && to != from
            {
                all.insert((from, to));
            }
        }
    }
    all
}

fn name(source: &Source) -> String {
    source.file.strip_prefix(root()).unwrap().display().to_string()
}

/// The rows of ARCHITECTURE.md's table: a module, and what it may use.
fn table() -> Vec<(String, BTreeSet<String>)> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let rows = text.lines().skip_while(|l| !l.starts_with("| module | what it is | may use |"));
    let names = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let row = |line: &str| -> Vec<(String, BTreeSet<String>)> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let [modules, _, used] = cells[..] else { panic!("not three cells: {line}") };
        let used: BTreeSet<String> = names(used).into_iter().collect();
        names(modules).into_iter().map(|m| (m, used.clone())).collect()
    };
    rows.skip(2).take_while(|l| l.starts_with('|')).flat_map(row).collect()
}

/// The top-level module of a file; those that `lib.rs` and `main.rs` hold themselves
/// belong to no row.
fn layer(source: &Source) -> Option<&str> {
    source.module.first().map(String::as_str)
}

#[test]
fn modules_import_what_the_table_allows() {
    let (sources, table) = (sources(), table());
    assert!(table.len() > 10, "ARCHITECTURE.md has no table of modules");
    let rows: BTreeMap<&str, &BTreeSet<String>> =
        table.iter().map(|(module, used)| (module.as_str(), used)).collect();
    let arrows = arrows(&sources);
    assert!(arrows.len() > sources.len(), "too few imports were found");
    let mut wrong = BTreeSet::new();
    for module in sources.iter().filter_map(layer) {
        if !rows.contains_key(module) {
            wrong.insert(format!("`{module}` has no row in the table"));
        }
    }
    for (from, to) in arrows {
        let (from, to) = (&sources[from], &sources[to]);
        let (Some(own), Some(other)) = (layer(from), layer(to)) else { continue };
        if own != other && !rows.get(own).is_some_and(|used| used.contains(other)) {
            wrong.insert(format!("{} imports {}", name(from), name(to)));
        }
    }
    assert!(wrong.is_empty(), "not in the table:\n{}", Vec::from_iter(wrong).join("\n"));
}

#[test]
fn commands_share_by_files_of_their_own() {
    let sources = sources();
    let is_command =
        |s: &Source| s.module.len() == 2 && s.module[0] == "commands" && s.module[1] != "shared";
    let wrong: Vec<String> = arrows(&sources)
        .into_iter()
        .map(|(from, to)| (&sources[from], &sources[to]))
        .filter(|(from, to)| is_command(from) && is_command(to))
        .map(|(from, to)| format!("{} imports {}", name(from), name(to)))
        .collect();
    assert!(wrong.is_empty(), "commands that import another:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_runs_one_way_and_names_only_what_there_is() {
    let table = table();
    let mut above: BTreeSet<&str> = BTreeSet::new();
    for (module, used) in &table {
        let file = root().join("src").join(module);
        assert!(
            file.is_dir() || file.with_extension("rs").is_file(),
            "the table names `{module}`, which there is not"
        );
        above.insert(module);
        let upwards: Vec<&String> = used.iter().filter(|u| above.contains(u.as_str())).collect();
        assert!(upwards.is_empty(), "`{module}` may use {upwards:?}, which stand above it");
    }
    for used in table.iter().flat_map(|(_, used)| used) {
        assert!(above.contains(used.as_str()), "the table allows `{used}`, which has no row");
    }
}

#[test]
fn files_import_each_other_in_no_circle() {
    let sources = sources();
    let arrows = arrows(&sources);
    // What can be reached from a file, until nothing new is.
    let mut reached: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); sources.len()];
    arrows.iter().for_each(|(from, to)| _ = reached[*from].insert(*to));
    for via in 0..sources.len() {
        let beyond = reached[via].clone();
        for set in reached.iter_mut().filter(|set| set.contains(&via)) {
            set.extend(&beyond);
        }
    }
    let in_circles = |i: &usize| reached[*i].contains(i);
    let wrong: Vec<String> = arrows
        .iter()
        .filter(|(from, to)| in_circles(from) && reached[*to].contains(from))
        .map(|(from, to)| format!("{} imports {}", name(&sources[*from]), name(&sources[*to])))
        .collect();
    assert!(wrong.is_empty(), "imports that make circles:\n{}", wrong.join("\n"));
}
