//! The page of a run: its curves and figures in one file that needs nothing else.
//!
//! A curve of more steps than a screen has columns is drawn as means over equal shares of the steps, in a band from the lowest to the highest.

use std::fmt::Write;

use crate::training::checkpoint::Progress;
use crate::training::config::Config;
use crate::training::metrics::Point;

/// Means of a curve, at the most.
const COLUMNS: usize = 480;
/// Steps that the loss among the figures is the mean of, at the most.
const RECENT: usize = 50;
/// Room for the numbers beside a chart.
const LEFT: f64 = 58.0;
/// Room for the numbers below it.
const BOTTOM: f64 = 26.0;
/// Room at its other sides.
const RIM: f64 = 10.0;

/// The page of a run that has done these steps.
pub fn page(config: &Config, progress: &Progress, points: &[Point]) -> String {
    let name = config.artifact.file_name().unwrap_or_default().to_string_lossy();
    let name = name.replace('&', "&amp;").replace('<', "&lt;");
    let steps = config.recipe.steps;
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{name}, step {}</title>\n<style>\n{}</style>\n<main>\n<h1>Training {name}</h1>\n\
         <p>{} tokens a step, seed {}, {} steps</p>\n<dl>\n",
        progress.step,
        include_str!("report.css"),
        config.recipe.batch,
        config.recipe.seed,
        steps
    );
    for (term, value) in figures(progress, points, steps) {
        html += &format!("<div><dt>{term}</dt><dd>{value}</dd></div>\n");
    }
    html += "</dl>\n";
    let validation: Vec<(f64, f64)> =
        points.iter().filter_map(|point| Some((point.step as f64, point.validation_loss?))).collect();
    let series = |value: fn(&Point) -> f64| Series::of(points, value);
    let loss = Chart { class: "loss", is_logarithmic: true, series: series(|point| point.loss), dots: validation };
    html += "<section>\n<h2>Loss, nats a token</h2>\n";
    if !loss.dots.is_empty() {
        html += "<div class=\"key\"><span><i style=\"background:var(--loss)\"></i>training</span>\
                 <span><i style=\"background:var(--validation)\"></i>validation</span></div>\n";
    }
    html += &loss.svg(1000.0, 380.0, steps);
    html += "</section>\n<div class=\"small\">\n";
    let small = [
        ("Norm of the gradients", "norm", true, series(|point| point.norm)),
        ("Learning rate", "rate", false, series(|point| point.rate)),
        ("Weight decay", "decay", false, series(|point| point.decay)),
    ];
    for (title, class, is_logarithmic, series) in small {
        let chart = Chart { class, is_logarithmic, series, dots: Vec::new() };
        html += &format!("<section>\n<h2>{title}</h2>\n{}</section>\n", chart.svg(420.0, 220.0, steps));
    }
    html + "</div>\n</main>\n</html>\n"
}

fn figures(progress: &Progress, points: &[Point], steps: u64) -> Vec<(String, String)> {
    let recent = &points[points.len().saturating_sub(RECENT)..];
    let mut figures = vec![("steps".to_owned(), format!("{} of {steps}", progress.step))];
    if !recent.is_empty() {
        let mean = recent.iter().map(|point| point.loss).sum::<f64>() / recent.len() as f64;
        figures.push((format!("loss of last {}", recent.len()), format!("{mean:.4}")));
    }
    figures.extend(progress.validation_loss.map(|loss| ("validation loss".to_owned(), format!("{loss:.4}"))));
    let best = points.iter().filter_map(|point| point.validation_loss).min_by(f64::total_cmp);
    figures.extend(best.map(|loss| ("lowest of those".to_owned(), format!("{loss:.4}"))));
    figures.push(("tokens".to_owned(), short(progress.tokens as f64)));
    if 0.0 < progress.seconds {
        figures.push(("tokens a second".to_owned(), short(progress.tokens as f64 / progress.seconds)));
    }
    figures.push(("time".to_owned(), time(progress.seconds)));
    figures
}

/// Hours, minutes and seconds.
fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if 0 < hours { format!("{hours} h {minutes:02} min") } else { format!("{minutes} min {seconds:02} s") }
}

/// Three digits and what they are multiplied with.
fn short(value: f64) -> String {
    let units = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")];
    match units.iter().find(|(unit, _)| *unit <= value) {
        Some((unit, name)) => format!("{:.3}", value / unit).chars().take(5).collect::<String>() + name,
        None => format!("{value:.0}"),
    }
}

/// A curve: where, and the lowest, mean and highest value there.
struct Series(Vec<(f64, [f64; 3])>);

impl Series {
    fn of(points: &[Point], value: fn(&Point) -> f64) -> Self {
        let share = points.len().div_ceil(COLUMNS).max(1);
        let column = |points: &[Point]| {
            let values = || points.iter().map(value);
            let count = points.len() as f64;
            let at = points.iter().map(|point| point.step as f64).sum::<f64>() / count;
            let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
            (at, [low, values().sum::<f64>() / count, high])
        };
        Self(points.chunks(share).map(column).collect())
    }
}

/// A curve with axes.
struct Chart {
    class: &'static str,
    is_logarithmic: bool,
    series: Series,
    dots: Vec<(f64, f64)>,
}

impl Chart {
    fn svg(&self, width: f64, height: f64, steps: u64) -> String {
        let values = self.series.0.iter().flat_map(|(_, values)| *values).chain(self.dots.iter().map(|(_, y)| *y));
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
        let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\">\n");
        let axis = Axis::new(low, high, self.is_logarithmic, (height - BOTTOM, RIM));
        let across = Axis::new(0.0, steps as f64, false, (LEFT, width - RIM));
        let (right, floor) = (width - RIM, height - BOTTOM);
        for tick in axis.ticks() {
            let y = axis.place(tick);
            let _ = writeln!(svg, "<line class=\"tick\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>");
            let (x, y) = (LEFT - 7.0, y + 4.0);
            let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>", plain(tick));
        }
        let _ = writeln!(svg, "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{floor}\" x2=\"{right}\" y2=\"{floor}\"/>");
        for tick in across.ticks() {
            let (x, y) = (across.place(tick), height - 8.0);
            let anchor = if right - 20.0 < x { "end" } else { "middle" };
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", plain(tick));
        }
        let place = |x: f64, y: f64| format!("{:.1},{:.1} ", across.place(x), axis.place(y));
        let class = self.class;
        if self.series.0.iter().any(|(_, [low, _, high])| low < high) {
            let above: String = self.series.0.iter().map(|(x, [_, _, high])| place(*x, *high)).collect();
            let below: String = self.series.0.iter().rev().map(|(x, [low, ..])| place(*x, *low)).collect();
            let _ = writeln!(svg, "<polygon class=\"band {class}\" points=\"{above}{below}\"/>");
        }
        let line: String = self.series.0.iter().map(|(x, [_, mean, _])| place(*x, *mean)).collect();
        let _ = writeln!(svg, "<polyline class=\"line {class}\" points=\"{line}\"/>");
        for (x, y) in &self.dots {
            let (cx, cy) = (across.place(*x), axis.place(*y));
            let _ = writeln!(
                svg,
                "<circle class=\"validation\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\"><title>step {x}: {y:.4}</title></circle>"
            );
        }
        svg + "</svg>\n"
    }
}

/// From values to places.
struct Axis {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    /// Where the lowest and the highest value stand.
    places: (f64, f64),
}

impl Axis {
    /// From 0 on, or from the lowest value on if sizes differ by factors.
    fn new(low: f64, high: f64, is_logarithmic: bool, places: (f64, f64)) -> Self {
        let is_logarithmic = is_logarithmic && 0.0 < low && low < high;
        let low = if is_logarithmic { low } else { low.min(0.0) };
        // Nothing to show, or nothing but zeros.
        let (low, high) = if low < high && low.is_finite() && high.is_finite() { (low, high) } else { (0.0, 1.0) };
        Self { low, high, is_logarithmic, places }
    }

    fn place(&self, value: f64) -> f64 {
        let Self { low, high, places: (start, end), .. } = self;
        let share =
            if self.is_logarithmic { (value / low).ln() / (high / low).ln() } else { (value - low) / (high - low) };
        start + (end - start) * share
    }

    /// Round values, some of them.
    fn ticks(&self) -> Vec<f64> {
        if self.is_logarithmic && 8.0 < self.high / self.low {
            let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let all = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)));
            let mut ticks: Vec<f64> = all.filter(|tick| (self.low..=self.high).contains(tick)).collect();
            if 9 < ticks.len() {
                // Too many to stand beside each other: powers of ten only.
                ticks.retain(|tick| tick.log10().fract().abs() < 1e-9);
            }
            return ticks;
        }
        let rough = (self.high - self.low) / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|digit| digit * power);
        let step = steps.into_iter().find(|step| rough <= *step).unwrap_or(10.0 * power);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|count| count as f64 * step).take_while(|tick| *tick <= self.high * (1.0 + 1e-9)).collect()
    }
}

/// A round number, without the digits that arithmetic left behind it.
fn plain(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let digits = format!("{value:.5}");
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let linear = Axis::new(0.0, 1000.0, false, (0.0, 1.0));
        assert_eq!(linear.ticks(), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        let narrow = Axis::new(0.93, 1.31, true, (0.0, 1.0));
        assert_eq!(narrow.ticks().iter().map(|tick| plain(*tick)).collect::<Vec<_>>(), ["1", "1.1", "1.2", "1.3"]);
        let wide = Axis::new(0.4, 7.0, true, (0.0, 1.0));
        assert_eq!(wide.ticks(), [0.5, 1.0, 2.0, 5.0]);
        assert!((wide.place(7.0) - 1.0).abs() < 1e-12 && wide.place(0.4) == 0.0);
        // Nothing at all is an axis, too.
        assert_eq!(Axis::new(f64::INFINITY, f64::NEG_INFINITY, true, (0.0, 1.0)).ticks().len(), 6);
    }

    #[test]
    fn numbers_are_written_short() {
        assert_eq!([0.0, 1.5e-4, 5e-4, 0.25, 1200.0].map(plain), ["0", "1.5e-4", "5e-4", "0.25", "1200"]);
        assert_eq!([12.0, 9_999.0, 591e6, 1.2345e9].map(short), ["12", "9.999 k", "591.0 M", "1.234 G"]);
        assert_eq!([59.6, 3_700.0].map(time), ["1 min 00 s", "1 h 01 min"]);
    }

    #[test]
    fn long_curves_become_means_with_a_band() {
        let point = |step: u64| Point {
            step,
            loss: step as f64,
            norm: 0.0,
            rate: 0.0,
            decay: 0.0,
            tokens: 0,
            seconds: 0.0,
            validation_loss: None,
        };
        let points: Vec<Point> = (1..=2 * COLUMNS as u64).map(point).collect();
        let series = Series::of(&points, |point| point.loss);
        assert_eq!(series.0.len(), COLUMNS);
        assert_eq!(series.0[0], (1.5, [1.0, 1.5, 2.0]));
        assert!(Series::of(&[], |point| point.loss).0.is_empty());
    }
}
