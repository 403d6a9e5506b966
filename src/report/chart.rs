//! Small SVG charts, drawn by hand: colours come from the page's classes, so that they follow its
//! light or dark scheme.

use std::fmt::Write as _;

use super::html::Escaped;

/// A bar with its name and the text of its value.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) shown: String,
    /// Class of its colour.
    pub(super) class: &'static str,
}

/// Horizontal bars from 0 to `top`.
pub(super) fn bars(label: &str, bars: &[Bar], top: f64) -> String {
    let height = 12 + ROW * bars.len();
    let mut svg = open(label, height);
    for (at, bar) in bars.iter().enumerate() {
        let y = 8 + ROW * at;
        let length = share(bar.value, 0.0, top) * BAR_WIDTH;
        let (name, shown) = (Escaped(&bar.name), Escaped(&bar.shown));
        let _ = write!(
            svg,
            r#"<text class="name" x="{x}" y="{text_y}" text-anchor="end">{name}</text>
<rect class="track" x="{left}" y="{y}" width="{BAR_WIDTH}" height="20" rx="4"/>
<rect class="{class}" x="{left}" y="{y}" width="{length:.1}" height="20" rx="4"/>
<text class="value" x="{value_x}" y="{text_y}">{shown}</text>
"#,
            x = BAR_LEFT - 10.0,
            text_y = y + 15,
            left = BAR_LEFT,
            class = bar.class,
            value_x = BAR_LEFT + BAR_WIDTH + 10.0,
        );
    }
    svg + "</svg>"
}

/// A line over rounds.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) class: &'static str,
    /// (round, value); points that aren't finite are left out.
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over rounds, y from 0 to a round number above `highest`.
pub(super) fn lines(label: &str, lines: &[Line], highest: f64) -> String {
    let mut svg = open(label, HEIGHT);
    let top = round_top(highest);
    let xs = || lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x);
    let first = xs().fold(f64::INFINITY, f64::min);
    let last = xs().fold(f64::NEG_INFINITY, f64::max);
    grid(&mut svg, top, WIDTH, |value| format!("{value:.2}"));
    round_axis(&mut svg, WIDTH, first, last);
    let place = |x: f64, y: f64| (LEFT + share(x, first, last) * WIDTH, height_of(y, top));
    for line in lines {
        let finite = line.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
        let points: Vec<(f64, f64)> = finite.map(|(x, y)| place(*x, *y)).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(svg, r#"<polyline class="{}" points="{}"/>"#, line.class, path.join(" "));
        if let Some((x, y)) = points.last() {
            let _ = write!(
                svg,
                r#"<circle class="{class} dot" cx="{x:.1}" cy="{y:.1}" r="4"/>
<text class="value" x="{text_x:.1}" y="{text_y:.1}" text-anchor="end">{name}</text>
"#,
                class = line.class,
                text_x = x - 4.0,
                // below the line, but not in the axis
                text_y = if y + 30.0 < BOTTOM { y + 20.0 } else { y - 10.0 },
                name = Escaped(&line.name),
            );
        }
    }
    svg + "</svg>"
}

/// Columns of two stacked amounts a round.
pub(super) fn columns(label: &str, rounds: &[(u64, u64, u64)], show: fn(u64) -> String) -> String {
    let mut svg = open(label, HEIGHT);
    let top = rounds.iter().map(|(_, up, down)| up.saturating_add(*down)).max().unwrap_or(0).max(1);
    let top = round_top(super::to_f64(top));
    grid(&mut svg, top, WIDTH, |value| show(from_f64(value)));
    let slot = WIDTH / super::to_f64(rounds.len().max(1) as u64);
    let mut x = LEFT;
    for (round, up, down) in rounds {
        let (y_up, y_both) = (
            height_of(super::to_f64(*up), top),
            height_of(super::to_f64(up.saturating_add(*down)), top),
        );
        let (at, wide) = (x + slot * 0.12, slot * 0.76);
        let _ = write!(
            svg,
            r#"<g><title>round {round}: {up_text} up, {down_text} down</title>
<rect class="down" x="{at:.1}" y="{y_both:.1}" width="{wide:.1}" height="{h_down:.1}"/>
<rect class="together" x="{at:.1}" y="{y_up:.1}" width="{wide:.1}" height="{h_up:.1}"/></g>
"#,
            up_text = show(*up),
            down_text = show(*down),
            h_down = y_up - y_both,
            h_up = BOTTOM - y_up,
        );
        x += slot;
    }
    let bounds = (rounds.first(), rounds.last());
    if let (Some((first, ..)), Some((last, ..))) = bounds {
        ends(&mut svg, WIDTH, slot / 2.0, *first, *last);
    }
    svg + "</svg>"
}

fn open(label: &str, height: usize) -> String {
    let label = Escaped(label);
    format!(r#"<svg viewBox="0 0 640 {height}" role="img" aria-label="{label}">"#) + "\n"
}

/// Five horizontal lines with their values.
fn grid(svg: &mut String, top: f64, width: f64, show: impl Fn(f64) -> String) {
    for quarter in 0_u8..=4 {
        let value = top * f64::from(quarter) / 4.0;
        let y = height_of(value, top);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/>
<text class="tick" x="{text_x}" y="{text_y:.1}" text-anchor="end">{shown}</text>
"#,
            right = LEFT + width,
            text_x = LEFT - 8.0,
            text_y = y + 4.0,
            shown = Escaped(&show(value)),
        );
    }
}

fn round_axis(svg: &mut String, width: f64, first: f64, last: f64) {
    if first.is_finite() && last.is_finite() {
        ends(svg, width, 0.0, from_f64(first), from_f64(last));
    }
}

/// Names the first and the last round below the plot.
fn ends(svg: &mut String, width: f64, inset: f64, first: u64, last: u64) {
    let y = BOTTOM + 20.0;
    let (left, right) = (LEFT + inset, LEFT + width - inset);
    let _ = write!(
        svg,
        r#"<text class="tick" x="{left:.1}" y="{y}" text-anchor="middle">{first}</text>
<text class="tick" x="{middle:.1}" y="{y}" text-anchor="middle">round</text>
<text class="tick" x="{right:.1}" y="{y}" text-anchor="middle">{last}</text>
"#,
        middle = LEFT + width / 2.0,
    );
}

/// The least of 4, 8, 10, 12, 16, 20 times a power of ten that isn't below `highest`: its quarters are
/// round numbers.
fn round_top(highest: f64) -> f64 {
    if !(highest.is_finite() && highest > 0.0) {
        return 1.0;
    }
    let power = 10.0_f64.powf((highest / 4.0).log10().floor());
    let tops = [4.0, 8.0, 10.0, 12.0, 16.0, 20.0, 40.0].map(|step| step * power);
    tops.into_iter().find(|top| *top >= highest * (1.0 - 1e-9)).unwrap_or(highest)
}

/// Where `value` lies between `low` and `high`, in [0, 1]; 0 when that can't be said.
fn share(value: f64, low: f64, high: f64) -> f64 {
    let share = (value - low) / (high - low);
    if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
}

fn height_of(value: f64, top: f64) -> f64 {
    BOTTOM - share(value, 0.0, top) * (BOTTOM - TOP)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "labels of an axis; `as` saturates"
)]
fn from_f64(value: f64) -> u64 {
    value.round() as u64
}

const ROW: usize = 32;
const BAR_LEFT: f64 = 170.0;
const BAR_WIDTH: f64 = 360.0;
const HEIGHT: usize = 260;
const LEFT: f64 = 64.0;
const WIDTH: f64 = 560.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 222.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_an_axis_is_round() {
        let tops = [0.95, 1.0, 1.1, 397_000.0, 3.0, 0.0, f64::NAN].map(round_top);
        assert_eq!(
            tops.map(|top| format!("{top:.1}")),
            ["1.0", "1.0", "1.2", "400000.0", "4.0", "1.0", "1.0"]
        );
    }

    #[test]
    fn odd_numbers_never_reach_the_coordinates() {
        let points = vec![(1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 0.5)];
        let line = Line { name: "<b>".into(), class: "together", points };
        let bar = Bar { name: "b".into(), value: f64::NAN, shown: "?".into(), class: "alone" };
        let none = lines("no rounds", &[], 1.0);
        for svg in [
            lines("a \"label\"", &[line], 1.0),
            bars("bars", &[bar], 0.0),
            columns("columns", &[(1, u64::MAX, u64::MAX)], |_| String::new()),
            columns("columns", &[], |_| String::new()),
            none,
        ] {
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(!svg.contains("<b>"), "{svg}");
        }
    }
}
