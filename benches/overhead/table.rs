//! Figures into Markdown: medians, ratios, rows. Nothing here measures.

/// The median of what was measured; nothing where a measurement is missing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// `value` with about three significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// As [`number`], or a dash where nothing was measured.
pub fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_string(), number)
}

/// A Markdown table that is printed as it grows.
pub struct Table;

impl Table {
    /// Prints a heading and the columns' names.
    pub fn begin(title: &str, columns: &[&str]) -> Self {
        println!("### {title}\n");
        println!("| {} |", columns.join(" | "));
        println!("|{}", "---|".repeat(columns.len()));
        Self
    }

    /// Prints one row.
    pub fn row(&self, cells: &[String]) {
        println!("| {} |", cells.join(" | "));
    }

    /// Ends the table with a line of explanation.
    pub fn end(self, note: &str) {
        println!("\n{note}\n");
    }
}
