use kuva::prelude::Layout;

/// Readable step of about `count` ticks over `span`: 1, 2 or 5 times a power of ten.
pub(super) fn nice_step(span: f64, count: usize) -> f64 {
    let rough = span / count as f64;
    if !rough.is_finite() || rough <= 0. {
        return 1.;
    }
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1., 2., 5.].into_iter().find(|factor| factor * power >= rough * (1. - 1e-9));
    factor.unwrap_or(10.) * power
}

/// The smallest range of whole steps around finite values.
pub(super) fn nice_range(values: impl IntoIterator<Item = f64>, count: usize) -> (f64, f64) {
    let finite = values.into_iter().filter(|value| value.is_finite());
    let (low, high) = finite
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0., 1.);
    }
    // A constant still needs a range around it.
    let margin = if high > low { 0. } else { 0.5 * low.abs().max(1e-3) };
    let (low, high) = (low - margin, high + margin);
    let step = nice_step(high - low, count);
    ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step)
}

/// A layout with exactly these ranges, a title and named axes.
pub(super) fn layout(title: &str, x: (&str, (f64, f64)), y: (&str, (f64, f64))) -> Layout {
    let ((x_label, x_range), (y_label, y_range)) = (x, y);
    Layout::new(x_range, y_range)
        .with_x_axis_min(x_range.0)
        .with_x_axis_max(x_range.1)
        .with_y_axis_min(y_range.0)
        .with_y_axis_max(y_range.1)
        .with_title(title)
        .with_x_label(x_label)
        .with_y_label(y_label)
        .with_title_size(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (span, count, step) in [(11., 12, 1.), (40., 8, 5.), (1., 5, 0.2), (0.03, 5, 0.01), (0., 5, 1.)] {
            assert!((nice_step(span, count) - step).abs() < 1e-12, "{span} / {count}");
        }
    }

    #[test]
    fn ranges_hold_their_values() {
        assert_eq!(nice_range([0.03, 2.31, f64::NAN], 5), (0., 2.5));
        assert_eq!(nice_range([], 5), (0., 1.));
        let (low, high) = nice_range([3.], 5);
        assert!(low < 3. && 3. < high);
    }
}
