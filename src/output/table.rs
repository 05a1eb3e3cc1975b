//! Tables: a header in bold, columns as wide as they need, two spaces between them.

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

use super::style::{HEADER, styled};

/// Between columns.
const GAP: usize = 2;

/// One field, and how it looks on a terminal.
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub fn styled(text: impl Into<String>, style: Style) -> Cell {
        // A message of several lines would tear its row apart.
        let text = text.into().replace('\n', " ");
        Cell { text, style }
    }

    /// The field, filled up with spaces outside of its style.
    fn padded(&self, width: usize) -> String {
        let fill = " ".repeat(width.saturating_sub(self.text.width()));
        format!("{}{fill}", styled(&self.text, self.style))
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell::styled(text, Style::new())
    }
}

pub fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [Cell; N]>) -> String {
    let header = header.map(|name| Cell::styled(name, HEADER));
    let rows: Vec<[Cell; N]> = [header].into_iter().chain(rows).collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].text.width()).max().unwrap_or(0));
    rows.iter().map(|row| line(row, &widths)).collect()
}

fn line<const N: usize>(row: &[Cell; N], widths: &[usize; N]) -> String {
    let fields = row.iter().zip(widths).map(|(cell, width)| cell.padded(width + GAP));
    format!("{}\n", fields.collect::<String>().trim_end())
}

#[cfg(test)]
mod tests {
    use super::super::style::RUNNING;
    use super::*;

    #[test]
    fn columns_line_up_whatever_their_style_and_script() {
        let rows = [
            ["ä".into(), Cell::styled("running", RUNNING), "x".into()],
            ["long".into(), "a\nb".into(), "".into()],
        ];
        let text = table(["A", "STATUS", "PATH"], rows.into_iter());
        let plain = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(plain, "A     STATUS   PATH\nä     running  x\nlong  a b\n");
        assert_ne!(plain, text, "the header and a status have a style");
    }
}
