//! No file imports another one that, by whatever way, imports it: also not within a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Source, assert_none, sources};

/// The files of the crate by their module paths, such as `sse::wire::frame`.
type Modules = BTreeMap<String, String>;

/// A file's module path. A `mod.rs` stands for its folder.
fn module_of(path: &Path) -> Option<String> {
    let below = path.strip_prefix("src").ok()?.with_extension("");
    let parts: Vec<&str> =
        below.iter().filter_map(|part| part.to_str()).filter(|part| *part != "mod").collect();
    Some(parts.join("::"))
}

/// Each path after `use`, with its groups spelled out, and each one that stands in code. From the root of the
/// crate.
fn imports(module: &str, is_folder: bool, code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        if before.is_alphanumeric() || before == '_' || before == ':' {
            continue;
        }
        let end = end_of_path(&code[at..]);
        for path in spelled_out(&code[at..at + end]) {
            found.extend(from_the_root(module, is_folder, &path));
        }
    }
    found
}

/// How long a path with its groups is, in bytes.
fn end_of_path(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' if text[..at].ends_with("::") || depth > 0 => depth += 1,
            '}' if depth > 0 => depth -= 1,
            c if depth > 0 || c.is_alphanumeric() || c == '_' || c == ':' => {}
            _ => return at,
        }
    }
    text.len()
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d` and `a::c::e`.
fn spelled_out(path: &str) -> Vec<String> {
    let Some((base, group)) = path.split_once('{') else {
        let path = path.split(" as ").next().unwrap_or_default();
        return vec![path.trim().trim_end_matches("::self").trim_end_matches("::").to_owned()];
    };
    let group = group.trim_end().strip_suffix('}').unwrap_or(group);
    let (mut depth, mut begin, mut found) = (0_usize, 0, Vec::new());
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = group[begin..at].trim();
                if !part.is_empty() {
                    found.extend(spelled_out(&format!("{}{part}", base.trim())));
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
    found
}

fn from_the_root(module: &str, is_folder: bool, path: &str) -> Option<String> {
    if let Some(path) = path.strip_prefix("crate::") {
        return Some(path.to_owned());
    }
    let mut at: Vec<&str> = module.split("::").collect();
    let mut rest = path;
    // Seen from a folder's own file, `super` is what holds the folder.
    if is_folder && !rest.starts_with("super::") {
        return None;
    }
    while let Some(further) = rest.strip_prefix("super::") {
        at.pop()?;
        rest = further;
    }
    Some(at.into_iter().chain([rest]).collect::<Vec<_>>().join("::"))
}

/// The names that a folder's own file hands on, with the modules that they come from.
fn handed_on(module: &str, code: &str) -> Vec<(String, String)> {
    let uses = code.split("pub use ").skip(1).filter_map(|text| text.split(';').next());
    let uses = uses.chain(code.split("pub(crate) use ").skip(1).filter_map(|text| text.split(';').next()));
    let paths = uses.flat_map(spelled_out).filter(|path| !path.starts_with("crate::"));
    let named = paths.filter_map(|path| {
        let name = path.rsplit("::").next()?.to_owned();
        Some((format!("{module}::{name}"), format!("{module}::{path}")))
    });
    named.collect()
}

/// The file that a path leads into, if it is one of ours.
fn file_of(modules: &Modules, names: &BTreeMap<String, String>, path: &str) -> Option<String> {
    let mut path = path.to_owned();
    for _ in 0..4 {
        let mut end = path.len();
        while end > 0 {
            if let Some(to) = names.get(&path[..end]) {
                path = format!("{to}{}", &path[end..]);
                break;
            }
            if modules.contains_key(&path[..end]) {
                return Some(path[..end].to_owned());
            }
            end = path[..end].rfind("::").unwrap_or(0);
        }
        if end == 0 {
            return None;
        }
    }
    None
}

/// Which file imports which. Folders' own files only hand on names.
fn arrows(all: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let is_folder = |path: &Path| path.ends_with("mod.rs") || path.with_extension("").is_dir();
    let of = |source: &Source| Some((module_of(&source.path)?, source.code().collect::<Vec<_>>().join("\n")));
    let (folders, files): (Vec<_>, Vec<_>) = all.iter().partition(|source| is_folder(&source.path));
    let modules: Modules = files.iter().filter_map(|source| of(source)).collect();
    let names = folders.iter().filter_map(|source| of(source));
    let names: BTreeMap<String, String> =
        names.flat_map(|(module, code)| handed_on(&module, &code)).collect();
    let of_module = |(module, code): (&String, &String)| {
        let used = imports(module, false, code);
        let used = used.iter().filter_map(|path| file_of(&modules, &names, path));
        (module.clone(), used.filter(|file| file != module).collect())
    };
    modules.iter().map(of_module).collect()
}

/// A way from a file back to itself, if there is one.
fn circle(arrows: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    for start in arrows.keys() {
        let mut way: Vec<(String, Vec<String>)> = vec![(start.clone(), next(arrows, start))];
        while let Some((file, left)) = way.last_mut() {
            let Some(to) = left.pop() else {
                done.insert(file.clone());
                way.pop();
                continue;
            };
            if let Some(at) = way.iter().position(|(file, _)| *file == to) {
                return Some(way[at..].iter().map(|(file, _)| file.clone()).chain([to]).collect());
            }
            if !done.contains(&to) {
                way.push((to.clone(), next(arrows, &to)));
            }
        }
    }
    None
}

fn next(arrows: &BTreeMap<String, BTreeSet<String>>, file: &str) -> Vec<String> {
    arrows.get(file).into_iter().flatten().cloned().collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let library: Vec<Source> =
        sources("src").into_iter().filter(|source| !source.path.starts_with("src/bin")).collect();
    let arrows = arrows(&library);
    let count: usize = arrows.values().map(BTreeSet::len).sum();
    assert!(count > 200, "the scanner sees imports ({count})");
    let circle = circle(&arrows).map(|files| files.join(" -> "));
    assert_none(circle.as_slice());
}

#[test]
fn the_scanner_of_circles_sees_what_it_must() {
    let code =
        "use super::b::{self, C};\nuse crate::x::{y::Z, w};\nlet a = super::super::q::f();\nmy_crate::no();";
    let mut found = imports("p::a", false, code);
    found.sort();
    assert_eq!(found, ["p::b", "p::b::C", "q::f", "x::w", "x::y::Z"]);
    let (modules, names) = (
        Modules::from([("p::b".to_owned(), String::new()), ("q::error".to_owned(), String::new())]),
        handed_on("q", "pub use error::{Error, Other};").into_iter().collect(),
    );
    assert_eq!(file_of(&modules, &names, "p::b::C").as_deref(), Some("p::b"));
    assert_eq!(file_of(&modules, &names, "q::Error").as_deref(), Some("q::error"));
    assert_eq!(file_of(&modules, &names, "sqlx::Row"), None);
    let to = |files: &[&str]| files.iter().map(|file| (*file).to_owned()).collect::<BTreeSet<_>>();
    let arrows = [("a", to(&["b"])), ("b", to(&["c"])), ("c", to(&["b"]))];
    let arrows = arrows.map(|(file, to)| (file.to_owned(), to)).into_iter().collect();
    assert_eq!(circle(&arrows).map(|files| files.join(" ")).as_deref(), Some("b c b"));
}
