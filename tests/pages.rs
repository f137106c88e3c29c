//! The pages say what the program does: every command line in them parses, every printed
//! output is what the program prints, and every quoted piece of code is in its file.
//!
//! A comment before a block of output says how far it must agree:
//!
//! * `<!-- output: same -->`: line by line.
//! * `<!-- output: numbers differ -->`: but for numbers, and the name of the device.
//! * `<!-- output: first words -->`: the first word of each line.
//!
//! Where `, slow` follows, the command takes minutes and runs only on demand. A line
//! `...` stands for any number of lines.
//!
//! `DEMIST_PAGES=write cargo test --release --test pages` writes the outputs anew, the
//! slow ones too; `DEMIST_PAGES=all` compares all of them.

#[path = "cli/support.rs"]
mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use support::Place;

/// How far a printed output must agree.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Agreement {
    Same,
    NumbersDiffer,
    FirstWords,
}

/// A command and what a page prints below it.
#[derive(Debug)]
struct Printed {
    command: String,
    lines: Vec<String>,
    agreement: Agreement,
    slow: bool,
    /// The lines of the page that hold the output.
    place: std::ops::Range<usize>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages, with their text.
fn pages() -> Vec<(PathBuf, String)> {
    let folders = [root().to_path_buf(), root().join("doc")];
    let entries = folders.iter().filter_map(|f| std::fs::read_dir(f).ok()).flatten();
    let mut pages: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    pages.retain(|p| p.extension().is_some_and(|e| e == "md"));
    pages.sort();
    assert!(pages.len() > 3, "{pages:?}");
    pages.into_iter().map(|p| (p.clone(), std::fs::read_to_string(&p).unwrap())).collect()
}

/// A block between fences: its language, the comment before it, and its lines with the
/// number of the first one.
struct Block<'a> {
    language: &'a str,
    comment: &'a str,
    lines: Vec<&'a str>,
    first: usize,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let lines: Vec<&str> = page.lines().collect();
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        if let Some(language) = lines[at].strip_prefix("```") {
            let length = lines[at + 1..].iter().take_while(|l| **l != "```").count();
            let comment = if at > 0 { lines[at - 1] } else { "" };
            let first = at + 1;
            blocks.push(Block {
                language,
                comment,
                lines: lines[first..first + length].to_vec(),
                first,
            });
            at = first + length;
        }
        at += 1;
    }
    blocks
}

/// Joins lines that end in a backslash with the next one; also says how many were joined.
fn joined(lines: &[&str]) -> Vec<(String, usize)> {
    let mut whole: Vec<(String, usize)> = Vec::new();
    let mut open = false;
    for line in lines {
        let (text, goes_on) = match line.strip_suffix('\\') {
            Some(text) => (text.trim_end(), true),
            None => (*line, false),
        };
        match whole.last_mut() {
            Some((last, count)) if open => {
                *last = format!("{last} {}", text.trim_start());
                *count += 1;
            }
            _ => whole.push((text.to_owned(), 1)),
        }
        open = goes_on;
    }
    whole
}

/// The commands of a block whose output follows them.
fn printed(page: &Path, block: &Block) -> Vec<Printed> {
    let mut found: Vec<Printed> = Vec::new();
    let mut at = block.first;
    for (text, count) in joined(&block.lines) {
        if let Some(command) = text.strip_prefix("$ ") {
            let (agreement, slow) = agreement(block.comment).unwrap_or_else(|| {
                panic!("{}: no comment tells how `{command}` is checked", page.display())
            });
            let (command, next) = (command.to_owned(), at + count);
            let place = next..next;
            found.push(Printed { command, lines: Vec::new(), agreement, slow, place });
        } else if let Some(last) = found.last_mut() {
            last.lines.push(text);
            last.place.end = at + count;
        }
        at += count;
    }
    found
}

fn agreement(comment: &str) -> Option<(Agreement, bool)> {
    let text = comment.strip_prefix("<!-- output: ")?.strip_suffix(" -->")?;
    let (text, slow) = match text.strip_suffix(", slow") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let agreement = match text {
        "same" => Agreement::Same,
        "numbers differ" => Agreement::NumbersDiffer,
        "first words" => Agreement::FirstWords,
        _ => return None,
    };
    Some((agreement, slow))
}

/// The words of a command line, without a comment.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|w| !w.is_empty());
    let end = words.iter().position(|w| w == "#").unwrap_or(words.len());
    words.truncate(end);
    words
}

/// The arguments of every call of the program in a command line.
fn calls(line: &str) -> Vec<Vec<String>> {
    let parts = line.strip_prefix("$ ").unwrap_or(line).split("; ").map(words);
    let call = |words: Vec<String>| {
        let at = words.iter().take_while(|w| w.contains('=')).count();
        let program = words.get(at)?;
        (program == "demist" || program.ends_with("/demist")).then(|| words[at + 1..].to_vec())
    };
    parts.filter_map(call).collect()
}

/// Code within a sentence, on one line each.
fn inline_code(page: &str) -> Vec<String> {
    let outside = |(i, part): (usize, &str)| (i % 2 == 0).then(|| part.to_owned());
    let prose: String = page.split("```").enumerate().filter_map(outside).collect();
    let inside = |(i, part): (usize, &str)| (i % 2 == 1).then(|| part.replace('\n', " "));
    prose.split('`').enumerate().filter_map(inside).collect()
}

#[test]
fn every_command_line_parses() {
    let place = Place::new();
    let mut count = 0;
    for (page, text) in pages() {
        let mut lines = inline_code(&text);
        for block in blocks(&text).iter().filter(|b| ["sh", "text"].contains(&b.language)) {
            lines.extend(joined(&block.lines).into_iter().map(|(line, _)| line));
        }
        for mut args in lines.iter().flat_map(|line| calls(line)) {
            // A row of a table goes on where the row above it ends.
            args.retain(|a| a != "..." && a != "..");
            // What comes before it is parsed, and nothing is run.
            args.push("--help".into());
            let outcome = place.run(&args);
            assert_eq!(outcome.code, Some(0), "{}: {args:?}: {outcome:#?}", page.display());
            count += 1;
        }
    }
    assert!(count > 40, "only {count} command lines found");
}

/// A folder in which the commands of a page run: the files that they name are there.
fn workplace() -> Place {
    let place = Place::new();
    for folder in ["assets", "tests/golden/pt"] {
        place.folder(folder);
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let entry = entry.unwrap();
            let target = place.path(folder).join(entry.file_name());
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
    place
}

/// What a command prints, both streams in their order.
fn output(place: &Place, command: &str) -> Vec<String> {
    let path = place.path("printed");
    let file = File::create(&path).unwrap();
    let args = calls(command).pop().unwrap_or_else(|| panic!("`{command}` is no call"));
    let status = place
        .command(&args)
        // For what `tune` keeps.
        .env("DEMIST_CACHE", place.path("cache"))
        .stdout(Stdio::from(file.try_clone().unwrap()))
        .stderr(Stdio::from(file))
        .status()
        .unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(status.success(), "{command}: {text}");
    let of_driver = |line: &&str| line.starts_with("WARNING: ");
    text.lines().filter(|l| !of_driver(l)).map(|l| l.trim_end().to_owned()).collect()
}

/// What of a line must agree.
fn masked(line: &str, agreement: Agreement) -> String {
    let first = || line.split_whitespace().next().unwrap_or_default().to_owned();
    match agreement {
        Agreement::Same => line.to_owned(),
        Agreement::FirstWords => first(),
        Agreement::NumbersDiffer if line.starts_with("device: ") => first(),
        Agreement::NumbersDiffer => {
            let mask = |word: &str| {
                let mut masked = String::new();
                for c in word.chars() {
                    match c {
                        '0'..='9' if masked.ends_with('#') => {}
                        '0'..='9' => masked.push('#'),
                        _ => masked.push(c),
                    }
                }
                masked.replace("#.#", "#")
            };
            line.split_whitespace().map(mask).collect::<Vec<_>>().join(" ")
        }
    }
}

/// Whether lines agree with a pattern in which `...` is any number of lines.
fn agrees(pattern: &[String], lines: &[String]) -> bool {
    match pattern.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=lines.len()).any(|skipped| agrees(rest, &lines[skipped..]))
        }
        Some((first, rest)) => lines.first() == Some(first) && agrees(rest, &lines[1..]),
    }
}

/// As many lines of `actual` as `shown` has on either side of its `...`. What has several
/// gaps was chosen by hand and stays.
fn shortened(shown: &[String], actual: &[String]) -> Vec<String> {
    let Some(gap) = shown.iter().position(|l| l == "...") else { return actual.to_vec() };
    if shown[gap + 1..].iter().any(|l| l == "...") {
        return shown.to_vec();
    }
    let (head, tail) = (gap.min(actual.len()), (shown.len() - gap - 1).min(actual.len()));
    [&actual[..head], &["...".to_owned()], &actual[actual.len() - tail..]].concat()
}

#[test]
fn printed_outputs_are_what_the_program_prints() {
    let wish = std::env::var("DEMIST_PAGES").unwrap_or_default();
    assert!(["", "all", "write"].contains(&wish.as_str()), "DEMIST_PAGES={wish}");
    let mut compared = 0;
    for (page, text) in pages() {
        let place = workplace();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let all = blocks(&text).iter().flat_map(|b| printed(&page, b)).collect::<Vec<_>>();
        let mut faults = Vec::new();
        let mut replacements = Vec::new();
        for p in all.iter().filter(|p| !p.slow || !wish.is_empty()) {
            let mut actual = output(&place, &p.command);
            // What every command says about its work is shown where a page wants it.
            let shown = |start: &str| p.lines.iter().any(|l| l.starts_with(start));
            for start in ["data: ", "device: "].into_iter().filter(|s| !shown(s)) {
                actual.retain(|l| !l.starts_with(start));
            }
            if p.lines.is_empty() {
                continue;
            }
            let mask = |lines: &[String]| -> Vec<String> {
                lines.iter().map(|l| masked(l, p.agreement)).collect()
            };
            compared += 1;
            if wish == "write" {
                replacements.push((p.place.clone(), shortened(&p.lines, &actual)));
            } else if !agrees(&mask(&p.lines), &mask(&actual)) {
                let (shown, actual) = (p.lines.join("\n"), actual.join("\n"));
                faults.push(format!("$ {}\n{actual}\nbut the page has\n{shown}\n", p.command));
            }
        }
        assert!(faults.is_empty(), "{}:\n{}", page.display(), faults.join("\n"));
        for (range, new) in replacements.into_iter().rev() {
            lines.splice(range, new);
        }
        if wish == "write" {
            std::fs::write(&page, lines.join("\n") + "\n").unwrap();
        }
    }
    assert!(compared > 2, "only {compared} outputs were compared");
}

#[test]
fn a_pattern_of_lines() {
    let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert!(agrees(&lines("a ... c"), &lines("a b b c")));
    assert!(agrees(&lines("... a"), &lines("a")));
    assert!(!agrees(&lines("a ... c"), &lines("a b")));
    assert!(!agrees(&lines("a"), &lines("a b")));
    assert_eq!(shortened(&lines("x ... y"), &lines("a b c")), lines("a ... c"));
    let numbers = |line| masked(line, Agreement::NumbersDiffer);
    assert_eq!(numbers("loss   0.2814 -> 0.1385"), numbers("loss 1 -> 12.5"));
    assert_ne!(numbers("loss 1"), numbers("mse 1"));
}

/// `<!-- code: FILE -->` before a block: these lines are in that file, one after the other.
#[test]
fn pieces_of_code_are_those_of_the_files() {
    for (page, text) in pages() {
        for block in blocks(&text) {
            let Some(name) = block.comment.strip_prefix("<!-- code: ") else { continue };
            let name = name.trim_end_matches(" -->");
            let file = std::fs::read_to_string(root().join(name)).unwrap();
            let lines: Vec<&str> = file.lines().collect();
            let found = lines.windows(block.lines.len()).any(|w| w == block.lines);
            assert!(found, "{}: not in {name}:\n{}", page.display(), block.lines.join("\n"));
        }
    }
}

/// A link to a file of the repository leads somewhere.
#[test]
fn links_between_pages_lead_somewhere() {
    for (page, text) in pages() {
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{}: {target} does not exist", page.display());
        }
    }
}
