//! Draws a chart as SVG text: lines over a scale, or bars. Colours are classes, so that the page
//! which holds the charts decides them, for light and for dark. What is drawn is the page's.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 48.0;
/// The height of one bar with its gap.
const BAR: f64 = 24.0;
/// The least distance between two lines of text.
const TEXT_GAP: f64 = 15.0;

/// One line of a chart.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    /// Drawn dashed and grey: something to compare with.
    pub(super) is_limit: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over two axes; both begin at their least value where they are logarithmic, and the upright
/// one at zero where it is not.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    pub(super) x_label: &'static str,
    pub(super) y_label: &'static str,
    pub(super) x_is_log: bool,
    pub(super) y_is_log: bool,
    pub(super) series: Vec<Series>,
}

/// One bar: what it stands for, its value, and the value in words.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) words: String,
}

/// A scale from values to places.
struct Scale {
    is_log: bool,
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64>, is_log: bool, start: f64, end: f64) -> Self {
        let values: Vec<f64> = values.filter(|value| !is_log || *value > 0.0).collect();
        let most = values.iter().copied().fold(f64::MIN, f64::max);
        let least = values.iter().copied().fold(f64::MAX, f64::min);
        let (from, to) = match (values.is_empty(), is_log) {
            (true, true) => (1.0, 10.0),
            (true, false) => (0.0, 1.0),
            (false, true) => (least, if most > least { most } else { least * 10.0 }),
            (false, false) => (0.0, if most > 0.0 { most * 1.05 } else { 1.0 }),
        };
        Self { is_log, from, to, start, end }
    }

    fn place(&self, value: f64) -> f64 {
        let along = |value: f64| if self.is_log { value.max(self.from).log10() } else { value };
        let share = (along(value) - along(self.from)) / (along(self.to) - along(self.from));
        self.start + share * (self.end - self.start)
    }

    /// Where lines are drawn and numbers written.
    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let steps: &[f64] = if self.to / self.from > 200.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let decades = (self.from.log10().floor() as i32)..=(self.to.log10().ceil() as i32);
            let all = decades.flat_map(|decade| steps.iter().map(move |s| s * 10_f64.powi(decade)));
            return all
                .filter(|tick| *tick >= self.from * 0.999 && *tick <= self.to * 1.001)
                .collect();
        }
        let rough = (self.to - self.from) / 5.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * decade);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let count = ((self.to - self.from) / step).floor() as u32;
        (0..=count).map(|number| self.from + f64::from(number) * step).collect()
    }
}

/// A number as it is written at an axis: 1,500,000 as 1.5M.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        large if large >= 1e6 => (value / 1e6, "M"),
        large if large >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 0.1 || small == 0.0 => 2,
        _ => 4,
    };
    let text = format!("{scaled:.digits$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// Text that may hold anything, within SVG or HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Draws lines.
pub(super) fn lines(chart: &Lines) -> String {
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let x = Scale::over(points().map(|point| point.0), chart.x_is_log, LEFT, WIDTH - RIGHT);
    let y = Scale::over(points().map(|point| point.1), chart.y_is_log, HEIGHT - BOTTOM, TOP);
    let mut svg = opening(HEIGHT, &format!("{} against {}", chart.y_label, chart.x_label));
    for tick in y.ticks() {
        let (at, end) = (y.place(tick), WIDTH - RIGHT);
        line(&mut svg, "grid", (LEFT, at), (end, at));
        text(&mut svg, "tick end", (LEFT - 8.0, at + 4.0), &short(tick));
    }
    for tick in x.ticks() {
        let (at, end) = (x.place(tick), HEIGHT - BOTTOM);
        line(&mut svg, "grid", (at, end), (at, end + 4.0));
        text(&mut svg, "tick middle", (at, end + 18.0), &short(tick));
    }
    line(&mut svg, "axis", (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM));
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    text(&mut svg, "label middle", (middle, HEIGHT - 10.0), chart.x_label);
    let turned =
        format!("transform=\"translate(14 {:.0}) rotate(-90)\"", (TOP + HEIGHT - BOTTOM) / 2.0);
    push(&mut svg, format_args!("<text class=\"label middle\" {turned}>{}</text>", chart.y_label));
    let mut names: Vec<(f64, String, String)> = Vec::new();
    let mut coloured = 0;
    for series in &chart.series {
        let class = if series.is_limit {
            "limit".to_owned()
        } else {
            coloured += 1;
            format!("s{coloured}")
        };
        let places: Vec<(f64, f64)> =
            series.points.iter().map(|(px, py)| (x.place(*px), y.place(*py))).collect();
        one_series(&mut svg, &class, series, &places);
        let last = places.last().map_or(TOP, |place| place.1);
        names.push((last, class, series.name.clone()));
    }
    put_names(&mut svg, names);
    svg.push_str("</svg>");
    svg
}

fn one_series(svg: &mut String, class: &str, series: &Series, places: &[(f64, f64)]) {
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    push(svg, format_args!("<polyline class=\"{class}\" points=\"{}\"/>", path.join(" ")));
    for ((x, y), (px, py)) in places.iter().zip(&series.points) {
        let words = format!("{}: {} at {}", escape(&series.name), short(*py), short(*px));
        let circle = format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\">");
        push(svg, format_args!("{circle}<title>{words}</title></circle>"));
    }
}

/// Writes each line's name at its end, pushed apart where they would cover each other.
fn put_names(svg: &mut String, mut names: Vec<(f64, String, String)>) {
    names.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut free = TOP;
    for (at, class, name) in names {
        let place = at.max(free);
        free = place + TEXT_GAP;
        let x = WIDTH - RIGHT + 10.0;
        push(
            svg,
            format_args!("<circle class=\"{class}\" cx=\"{x:.0}\" cy=\"{place:.1}\" r=\"3.5\"/>"),
        );
        text(svg, "name", (x + 8.0, place + 4.0), &name);
    }
}

/// Draws bars, from `0` to the largest value or to `full` if that is larger, with a line at `full`.
pub(super) fn bars(bars: &[Bar], full: f64) -> String {
    let height = TOP + BAR * bars.len() as f64 + 8.0;
    let (left, right) = (250.0, 110.0);
    let most = bars.iter().map(|bar| bar.value).fold(full, f64::max).max(f64::MIN_POSITIVE);
    let mut svg = opening(height, "bars");
    for (number, bar) in bars.iter().enumerate() {
        let top = TOP + BAR * number as f64;
        let width = (WIDTH - left - right) * (bar.value / most).clamp(0.0, 1.0);
        text(&mut svg, "name end", (left - 8.0, top + 14.0), &bar.name);
        let place = format!("x=\"{left:.0}\" y=\"{top:.0}\" width=\"{width:.1}\" height=\"18\"");
        push(&mut svg, format_args!("<rect class=\"bar\" rx=\"3\" {place}/>"));
        text(&mut svg, "tick", (left + width + 6.0, top + 14.0), &bar.words);
    }
    let at = left + (WIDTH - left - right) * (full / most);
    line(&mut svg, "full", (at, TOP - 6.0), (at, height - 8.0));
    svg.push_str("</svg>");
    svg
}

fn opening(height: f64, says: &str) -> String {
    let size = format!("viewBox=\"0 0 {WIDTH:.0} {height:.0}\"");
    format!("<svg {size} role=\"img\" aria-label=\"{}\">", escape(says))
}

fn line(svg: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let ends =
        format!("x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"", from.0, from.1, to.0, to.1);
    push(svg, format_args!("<line class=\"{class}\" {ends}/>"));
}

fn text(svg: &mut String, class: &str, at: (f64, f64), words: &str) {
    let place = format!("x=\"{:.1}\" y=\"{:.1}\"", at.0, at.1);
    push(svg, format_args!("<text class=\"{class}\" {place}>{}</text>", escape(words)));
}

fn push(svg: &mut String, part: std::fmt::Arguments<'_>) {
    // Writing to a text never fails.
    svg.write_fmt(part).unwrap_or(());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: f64, expected: &str) {
        assert_eq!(short(value), expected);
    }

    #[test]
    fn numbers_at_an_axis_are_short() {
        check(0.0, "0");
        check(0.05, "0.05");
        check(1.5, "1.5");
        check(128.0, "128");
        check(20_000.0, "20k");
        check(1_500_000.0, "1.5M");
    }

    #[test]
    fn ticks_lie_within_the_scale_and_are_round() {
        let linear = Scale::over([0.0, 95.0].into_iter(), false, 0.0, 100.0);
        assert_eq!(linear.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0]);
        let log = Scale::over([1.0, 4_096.0].into_iter(), true, 0.0, 100.0);
        let ticks: Vec<String> = log.ticks().into_iter().map(short).collect();
        assert_eq!(ticks, ["1", "10", "100", "1k"]);
        assert_eq!(log.place(1.0), 0.0);
        assert_eq!(log.place(4_096.0), 100.0);
    }

    #[test]
    fn a_chart_without_values_is_drawn_all_the_same() {
        let (x_label, y_label) = ("load", "time");
        let series = vec![Series { name: "a<b".to_owned(), is_limit: false, points: Vec::new() }];
        let chart = Lines { x_label, y_label, x_is_log: true, y_is_log: true, series };
        let svg = lines(&chart);
        assert!(svg.contains("a&lt;b") && !svg.contains("NaN") && svg.ends_with("</svg>"), "{svg}");
        assert!(!bars(&[], 1.0).contains("NaN"));
    }
}
