//! `report.html`: one page with everything inline, readable offline and in any browser.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::files::write_atomic;
use crate::progress;
use crate::results::Results;
use crate::table::Table;

/// A page under construction, top to bottom.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    body: String,
    figures: usize,
}

impl Report {
    /// An empty page.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new(), figures: 0 }
    }

    /// Adds a heading.
    pub fn heading(&mut self, text: &str) -> &mut Self {
        self.push(&format!("<h2>{}</h2>", escape(text)))
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: &str) -> &mut Self {
        self.push(&format!("<p>{}</p>", escape(text)))
    }

    /// Adds a table with a caption.
    pub fn table(&mut self, table: &Table, caption: &str) -> &mut Self {
        let row = |cells: &[String], tag: &str| {
            let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = table.rows().iter().map(|cells| row(cells, "td")).collect();
        let (caption, head) = (escape(caption), row(table.header(), "th"));
        self.push(&format!(
            "<div class=\"wide\"><table><caption>{caption}</caption>\n<thead>{head}</thead>\n<tbody>{rows}</tbody></table></div>"
        ))
    }

    /// Adds a figure, an SVG image as [`plots::write`](crate::plots::write) returns it, with a caption.
    pub fn figure(&mut self, svg: &str, caption: &str) -> &mut Self {
        self.figures += 1;
        let (number, caption) = (self.figures, escape(caption));
        let svg = inline(svg, &format!("figure{number}-"));
        self.push(&format!(
            "<figure>{svg}<figcaption><b>Figure {number}.</b> {caption}</figcaption></figure>"
        ))
    }

    /// Adds text that is folded away until asked for, such as a configuration.
    pub fn details(&mut self, summary: &str, text: &str) -> &mut Self {
        self.push(&format!(
            "<details><summary>{}</summary><pre>{}</pre></details>",
            escape(summary),
            escape(text)
        ))
    }

    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        let (title, body) = (escape(&self.title), &self.body);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
        )
    }

    /// Ends the page with configuration and machine, writes `results.json` and `report.html` into `folder`, and says so.
    ///
    /// # Errors
    ///
    /// When a file cannot be written; the message names it.
    pub fn close(&mut self, results: &mut Results, folder: &Path) -> Result<()> {
        results.write(folder)?;
        self.details("Configuration", &serde_json::to_string_pretty(&results.config)?);
        self.details("Machine", &serde_json::to_string_pretty(&results.machine)?);
        self.write(folder)?;
        progress::print(&format!("\nresults.json, report.html and figures are in {}\n", folder.display()));
        Ok(())
    }

    /// Writes `report.html` into `folder`, in one piece.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; the message names it.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("report.html");
        write_atomic(&path, self.html().as_bytes())?;
        Ok(path)
    }

    fn push(&mut self, html: &str) -> &mut Self {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{html}");
        self
    }
}

/// Text as HTML that shows that text.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            _ => html.push(c),
        }
    }
    html
}

/// An SVG file as an element of a page: no XML declaration, and ids that other figures of the page do not have.
fn inline(svg: &str, prefix: &str) -> String {
    let start = svg.find("<svg").unwrap_or(0);
    let svg = svg[start..].replace(" id=\"", &format!(" id=\"{prefix}"));
    svg.replace("url(#", &format!("url(#{prefix}")).replace("href=\"#", &format!("href=\"#{prefix}"))
}

const STYLE: &str = "
:root { --ink: #1c2024; --soft: #5b6570; --line: #d8dde3; --page: #fff; --shade: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #9aa4ae; --line: #3a424a; --page: #16191c; --shade: #1f2428; }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; }
tbody tr:hover { background: var(--shade); }
figure { margin: 1.5rem 0; }
figure svg { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption, summary { color: var(--soft); }
pre { background: var(--shade); padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem; }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<b a=\"1\" b='2'>&"), "&lt;b a=&quot;1&quot; b=&#39;2&#39;&gt;&amp;");
        let mut table = Table::new(["<i>"]);
        table.row(["<script>"]);
        let mut report = Report::new("<u>");
        report.heading("<h>").paragraph("a < b & c").table(&table, "<c>").details("<s>", "</pre>");
        report.figure("<svg></svg>", "<f>");
        let html = report.html();
        for text in ["<script>", "<u>", "<i>", "<h>", "<c>", "<s>", "<f>", "</pre></pre>"] {
            assert!(!html.contains(text), "{text}");
        }
        assert!(html.contains("a &lt; b &amp; c"));
    }

    #[test]
    fn figures_of_one_page_do_not_share_ids() {
        let svg = "<?xml version=\"1.0\"?><svg><clipPath id=\"clip0\"/><g clip-path=\"url(#clip0)\"/></svg>";
        let mut report = Report::new("Two figures");
        let html = report.figure(svg, "a").figure(svg, "b").html();
        assert!(!html.contains("<?xml"));
        for figure in ["figure1-clip0", "figure2-clip0"] {
            assert_eq!(html.matches(figure).count(), 2);
        }
    }

    #[test]
    fn loads_nothing_from_elsewhere() {
        let html = Report::new("Alone").html();
        for text in ["http", "src=", "@import", "<link", "<script"] {
            assert!(!html.contains(text), "{text}");
        }
    }
}
