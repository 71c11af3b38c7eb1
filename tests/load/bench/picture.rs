//! The rows as a picture: a bar for each median, a line for its spread, a mark at its goal. SVG, in the
//! colours of the reader's theme.

use std::fmt::Write;

use super::row::{Against, Line, Table, shown};

const WIDTH: f64 = 880.0;
const ROW: f64 = 30.0;
const TOP: f64 = 54.0;
/// Where the bars begin, and how long the longest one is.
const LEFT: f64 = 300.0;
const LENGTH: f64 = 440.0;

const STYLE: &str = "
    svg { color-scheme: light dark; font: 14px/1.4 system-ui, -apple-system, \"Segoe UI\", Roboto, sans-serif; }
    .ground { fill: #ffffff; } .reached { fill: #2456cf; } .missed { fill: #b06a00; } text { fill: #151a21; }
    .soft { fill: #56606e; font-size: 12px; } .spread { stroke: #151a21; } .goal { stroke: #b8251a; }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0d1117; } .reached { fill: #7da5ff; } .missed { fill: #e0a040; } text { fill: #e6eaf0; }
      .soft { fill: #98a3b3; } .spread { stroke: #e6eaf0; } .goal { stroke: #ff8275; }
    }
  ";

/// The picture of the rows that are judged in this way.
pub(super) fn of(table: &Table, against: Against) -> String {
    let lines: Vec<&Line> = table.0.iter().filter(|line| line.against == against).collect();
    let (title, unit) = match against {
        Against::Floor => ("As a part of the floor in the same run", "x"),
        Against::Above => ("Above the commit alone", " ms"),
        Against::Nothing => ("Alone", ""),
    };
    let height = TOP + ROW * lines.len() as f64 + 30.0;
    let of_line = |line: &&Line| line.goal.map_or(0.0, |goal| goal.bound()).max(line.scores()[1]) * 1.1;
    let longest = lines.iter().map(of_line).fold(0.1, f64::max);
    let x = |value: f64| LEFT + LENGTH * value.clamp(0.0, longest) / longest;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n  <title>{title}</title>\n  <style>{STYLE}</style>\n  \
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\" rx=\"10\"/>\n  \
         <text x=\"24\" y=\"32\" font-weight=\"600\">{title}</text>\n"
    );
    for (i, line) in lines.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let [min, median, max] = line.scores();
        let class = if line.is_reached().unwrap_or(true) { "reached" } else { "missed" };
        let (middle, end) = (y + 10.0, x(median));
        let parts = [
            format!("<text x=\"24\" y=\"{}\">{}</text>", y + 15.0, line.name),
            format!(
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"20\" rx=\"3\"/>",
                end - LEFT
            ),
            format!(
                "<path class=\"spread\" d=\"M{:.1} {middle} L{:.1} {middle}\" stroke-width=\"2\"/>",
                x(min),
                x(max)
            ),
            line.goal.map_or_else(String::new, |goal| {
                let at = x(goal.bound());
                format!(
                    "<path class=\"goal\" d=\"M{at:.1} {} L{at:.1} {}\" stroke-width=\"2\"/>",
                    y - 4.0,
                    y + 24.0
                )
            }),
            format!(
                "<text class=\"soft\" x=\"{}\" y=\"{}\">{}{unit}</text>",
                LEFT + LENGTH + 16.0,
                y + 15.0,
                shown(median)
            ),
        ];
        parts.iter().filter(|part| !part.is_empty()).for_each(|part| {
            // Writing to a String does not fail.
            let _written = writeln!(svg, "  {part}");
        });
    }
    let _written = write!(
        svg,
        "  <text class=\"soft\" x=\"24\" y=\"{}\">bar: median; dark line: spread; red mark: goal</text>\n</svg>\n",
        height - 14.0
    );
    svg
}
