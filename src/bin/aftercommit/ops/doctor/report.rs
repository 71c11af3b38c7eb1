//! The findings on a screen of 80 columns: the gravest first, and nothing said twice.

use super::{Finding, Outcome};
use crate::ops::output::{self, Painted};

/// The column of checks, right of the verdicts.
const INDENT: usize = 9;

/// Prints the findings.
pub(super) fn print(findings: &[Finding]) {
    for Group { findings, fix } in groups(findings) {
        for (finding, evidence) in findings {
            let (word, colour) = verdict(finding.verdict);
            let text = format!("{word:<8} {}: {evidence}", finding.check);
            output::paragraph(&text, INDENT, Some(Painted { word, colour }));
        }
        if !fix.is_empty() {
            output::paragraph(&format!("{:INDENT$}fix: {fix}", ""), INDENT, None);
        }
    }
}

/// A verdict's word and colour: red, yellow, green.
fn verdict(verdict: Outcome) -> (&'static str, &'static str) {
    match verdict {
        Outcome::Ok => ("ok", "32"),
        Outcome::Warning => ("WARNING", "33"),
        Outcome::Wrong => ("WRONG", "1;31"),
    }
}

/// Findings that have one fix, each with its evidence.
#[derive(Debug)]
struct Group<'a> {
    findings: Vec<(&'a Finding, String)>,
    fix: &'a str,
}

/// The findings by gravity, otherwise in the order of the checks. Those of one verdict share a fix that they
/// have in common. An evidence that repeats another finding's evidence refers to it.
fn groups(findings: &[Finding]) -> Vec<Group<'_>> {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
    let mut groups: Vec<Group<'_>> = Vec::new();
    for finding in &sorted {
        let others = sorted.iter().filter(|other| other.verdict != Outcome::Ok);
        let said = others.map(|other| (other.check, other.evidence.as_str()));
        let evidence = output::without_repetitions(&finding.evidence, said);
        let is_shared = |group: &&mut Group<'_>| {
            let verdict = group.findings.first().map(|(first, _)| first.verdict);
            !finding.fix.is_empty() && group.fix == finding.fix && verdict == Some(finding.verdict)
        };
        match groups.iter_mut().find(is_shared) {
            Some(group) => group.findings.push((finding, evidence)),
            None => groups.push(Group { findings: vec![(finding, evidence)], fix: &finding.fix }),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_finding_comes_first_and_nothing_is_said_twice() {
        const REFUSED: &str = "cannot connect to Redis at 127.0.0.1:1: Connection refused";
        let late = |check, at| Finding::should(check, false, format!("not ready at {at}: {REFUSED}"), "look");
        let findings = [
            Finding::ok("postgres", "answers"),
            Finding::wrong("deliveries", format!("relay main: FAILING: {REFUSED}"), "see it"),
            late("port of sse", 1),
            Finding::wrong("redis", REFUSED, "start it"),
            late("port of relay", 2),
        ];
        let told: Vec<String> = groups(&findings)
            .iter()
            .map(|group| {
                let evidences =
                    group.findings.iter().map(|(finding, said)| format!("{}: {said}", finding.check));
                format!("{} [{}]", evidences.collect::<Vec<_>>().join(", "), group.fix)
            })
            .collect();
        let expected = [
            "deliveries: relay main: FAILING: see redis [see it]".to_owned(),
            format!("redis: {REFUSED} [start it]"),
            "port of sse: not ready at 1: see redis, port of relay: not ready at 2: see redis [look]"
                .to_owned(),
            "postgres: answers []".to_owned(),
        ];
        assert_eq!(told, expected);
    }
}
