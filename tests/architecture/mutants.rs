//! The lists of mutants fit the sources: a line that has been rewritten is found by the next run of the
//! tests, and not by the next run of all mutants, which takes hours.

use std::fs;
use std::path::Path;

#[test]
fn every_mutant_of_the_lists_still_finds_its_place_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut mutants, mut stray) = (0, Vec::new());
    for list in fs::read_dir(root.join("scripts/mutants.d")).expect("the lists") {
        let text = fs::read_to_string(list.expect("a list").path()).expect("a list");
        let lines: Vec<&str> =
            text.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")).collect();
        for mutant in lines.chunks(5) {
            let [name, file, from, to, _tests] = mutant else { panic!("it ends early: {mutant:?}") };
            let source = fs::read_to_string(root.join(file)).unwrap_or_default();
            let from = from.strip_prefix("- ").expect("what is replaced").replace("\\n", "\n");
            assert!(to.starts_with('+'), "{name}");
            if source.matches(&from).count() != 1 {
                stray.push((*name).to_owned());
            }
            mutants += 1;
        }
    }
    assert!(stray.is_empty(), "not there once: {stray:?}");
    assert!(mutants > 100, "only {mutants} are found");
}
