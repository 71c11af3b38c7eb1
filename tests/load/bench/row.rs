//! The rows of a bench, over several runs of it.

use std::fmt;

use serde_json::{Value, json};

/// The number that a measured value is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Against {
    /// The value over its floor.
    Floor,
    /// The value less its floor.
    Above,
    /// The value alone.
    Nothing,
}

/// A bound of that number.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn is_reached(self, score: f64) -> bool {
        match self {
            Self::AtLeast(bound) => score >= bound,
            Self::AtMost(bound) => score <= bound,
        }
    }

    pub(super) fn bound(self) -> f64 {
        let (Self::AtLeast(bound) | Self::AtMost(bound)) = self;
        bound
    }
}

/// One measurement.
#[derive(Debug, Clone)]
pub(super) struct Row {
    name: String,
    unit: &'static str,
    value: f64,
    floor: Option<f64>,
    against: Against,
    goal: Option<Goal>,
}

impl Row {
    pub(super) fn new(name: String, unit: &'static str, value: f64, against: Against) -> Self {
        Self { name, unit, value, floor: None, against, goal: None }
    }

    pub(super) fn floor(self, floor: f64) -> Self {
        Self { floor: Some(floor), ..self }
    }

    pub(super) fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    fn score(&self) -> f64 {
        match (self.against, self.floor) {
            (Against::Floor, Some(floor)) => self.value / floor,
            (Against::Above, Some(floor)) => self.value - floor,
            _ => self.value,
        }
    }
}

/// A row of all runs.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) against: Against,
    pub(super) goal: Option<Goal>,
    values: Vec<f64>,
    floors: Vec<f64>,
    scores: Vec<f64>,
}

impl Line {
    /// The least, the median and the most of its scores.
    pub(super) fn scores(&self) -> [f64; 3] {
        let mut scores = self.scores.clone();
        scores.sort_by(f64::total_cmp);
        [scores[0], scores[scores.len() / 2], scores[scores.len() - 1]]
    }

    /// Whether the median reaches the goal; `None` without a goal.
    pub(super) fn is_reached(&self) -> Option<bool> {
        self.goal.map(|goal| goal.is_reached(self.scores()[1]))
    }
}

/// All rows, in the order in which they were first measured.
#[derive(Debug, Default)]
pub(super) struct Table(pub(super) Vec<Line>);

impl Table {
    /// Adds the rows of one run.
    pub(super) fn add(&mut self, rows: Vec<Row>) {
        for row in rows {
            let place = self.0.iter().position(|line| line.name == row.name).unwrap_or_else(|| {
                let Row { name, unit, against, goal, .. } = row.clone();
                let (values, floors, scores) = Default::default();
                self.0.push(Line { name, unit, against, goal, values, floors, scores });
                self.0.len() - 1
            });
            let line = &mut self.0[place];
            line.values.push(row.value);
            line.floors.extend(row.floor);
            line.scores.push(row.score());
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let line = |line: &Line| {
            let [min, median, max] = line.scores();
            json!({
                "name": line.name, "unit": line.unit, "values": line.values, "floors": line.floors,
                "against": match line.against {
                    Against::Floor => "value / floor",
                    Against::Above => "value - floor",
                    Against::Nothing => "value",
                },
                "score": { "min": min, "median": median, "max": max },
                "goal": line.goal.map(|goal| match goal {
                    Goal::AtLeast(bound) => json!({ "atLeast": bound }),
                    Goal::AtMost(bound) => json!({ "atMost": bound }),
                }),
                "reached": line.is_reached(),
            })
        };
        self.0.iter().map(line).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<36} {:>13} {:>9} {:>9}  {:<18} goal", "", "", "floor", "value", "score (spread)")?;
        for line in &self.0 {
            let [min, median, max] = line.scores().map(shown);
            let goal = match line.goal {
                Some(Goal::AtLeast(bound)) => format!("at least {bound}"),
                Some(Goal::AtMost(bound)) => format!("at most {bound}"),
                None => String::new(),
            };
            let verdict = line.is_reached().map_or("", |is| if is { ", reached" } else { ", MISSED" });
            let middle = |values: &[f64]| match values.len() {
                0 => String::new(),
                _ => {
                    let mut sorted = values.to_vec();
                    sorted.sort_by(f64::total_cmp);
                    shown(sorted[sorted.len() / 2])
                }
            };
            let (floor, value) = (middle(&line.floors), middle(&line.values));
            let score = match line.against {
                Against::Floor => format!("x {median} ({min}-{max})"),
                Against::Above => format!("+ {median} ({min}-{max})"),
                Against::Nothing => format!("  {median} ({min}-{max})"),
            };
            writeln!(
                f,
                "{:<36} {:>13} {floor:>9} {value:>9}  {score:<18} {goal}{verdict}",
                line.name, line.unit
            )?;
        }
        Ok(())
    }
}

/// A number with three digits that count.
pub(super) fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
