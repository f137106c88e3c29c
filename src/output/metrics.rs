//! metrics.csv: one header line, one line a logged step, the step first.
//!
//! Rows are appended and flushed while training, so that the file can be
//! watched. A run that was killed may leave a last line without its line break:
//! such a line is left out. Resuming at an earlier checkpoint drops the rows
//! after it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::files::atomic;
use crate::{Error, Result};

/// Appends rows to a metrics file.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    /// For each column of the file after the step, which given value goes there.
    order: Vec<Option<usize>>,
    given: usize,
}

impl MetricsWriter {
    /// Starts a new file with a `step` column and `columns`, replacing an old one.
    ///
    /// # Errors
    /// [`Error::Config`] for column names that CSV cannot hold, [`Error::Io`] if
    /// the file cannot be written.
    pub fn create(path: &Path, columns: &[&str]) -> Result<Self> {
        check_columns(columns)?;
        let names: Vec<String> = columns.iter().map(|&c| c.to_owned()).collect();
        Metrics { columns: names, rows: Vec::new() }.write(path)?;
        Self::open(path, columns, columns)
    }

    /// Goes on with the file of an earlier run that was saved after `step`: later
    /// rows are dropped. Columns may have changed: old ones are kept (and stay
    /// empty from now on), new ones are added (and are empty before). Without a
    /// file this is [`MetricsWriter::create`].
    ///
    /// # Errors
    /// As [`MetricsWriter::create`], and [`Error::File`] if the file is no metrics file.
    pub fn resume(path: &Path, columns: &[&str], step: u64) -> Result<Self> {
        check_columns(columns)?;
        if !path.exists() {
            return Self::create(path, columns);
        }
        let mut old = Metrics::read(path)?;
        old.rows.retain(|row| row.step <= step);
        for &c in columns {
            if !old.columns.iter().any(|o| o == c) {
                old.columns.push(c.to_owned());
                old.rows.iter_mut().for_each(|row| row.values.push(f64::NAN));
            }
        }
        old.write(path)?;
        let names: Vec<&str> = old.columns.iter().map(String::as_str).collect();
        Self::open(path, &names, columns)
    }

    /// Adds one row, `values` in the order of the columns given at the start, and
    /// hands it to the operating system. NaN is written as an empty field.
    ///
    /// # Errors
    /// [`Error::Shape`] for a wrong number of values, [`Error::Io`] on a full disk.
    pub fn append(&mut self, step: u64, values: &[f64]) -> Result<()> {
        if values.len() != self.given {
            let detail = format!("{} values for {} columns", values.len(), self.given);
            return Err(Error::shape("metrics", detail));
        }
        let values: Vec<f64> =
            self.order.iter().map(|i| i.map_or(f64::NAN, |i| values[i])).collect();
        // One write call per row, so that rows do not tear in a reader's eyes.
        let line = Row { step, values }.line();
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }

    fn open(path: &Path, in_file: &[&str], given: &[&str]) -> Result<Self> {
        let file =
            OpenOptions::new().append(true).open(path).map_err(|e| Error::io("open", path, e))?;
        let order = in_file.iter().map(|f| given.iter().position(|g| g == f)).collect();
        Ok(MetricsWriter { path: path.to_owned(), file, order, given: given.len() })
    }
}

/// One logged step.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The training step.
    pub step: u64,
    /// One value a column; NaN where the field is empty.
    pub values: Vec<f64>,
}

impl Row {
    fn line(&self) -> String {
        let mut line = self.step.to_string();
        for &v in &self.values {
            line.push(',');
            line.push_str(&field(v));
        }
        line.push('\n');
        line
    }
}

/// A metrics file in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Column names, without the leading `step`.
    pub columns: Vec<String>,
    /// The rows in file order.
    pub rows: Vec<Row>,
}

impl Metrics {
    /// Reads a metrics file. A last line without a line break is left out; a file
    /// without any whole line counts as empty.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::File`] naming the line that is
    /// not a row.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        let text = std::str::from_utf8(&bytes[..whole])
            .map_err(|_| Error::file(path, "not a metrics file: it is not UTF-8 text"))?;
        let mut lines = text.lines().enumerate();
        let Some((_, header)) = lines.next() else {
            // Nothing but a torn line: the run died before it logged.
            return Ok(Metrics { columns: Vec::new(), rows: Vec::new() });
        };
        let (first, names) = header.split_once(',').unwrap_or((header, ""));
        if first != "step" {
            return Err(Error::file(path, "not a metrics file: the first column is not `step`"));
        }
        let columns: Vec<String> =
            names.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect();
        let mut rows = Vec::new();
        for (i, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let row = parse_row(line, columns.len()).ok_or_else(|| {
                let detail = format!(
                    "line {} is not a step and {} numbers: {:?}",
                    i + 1,
                    columns.len(),
                    line.chars().take(80).collect::<String>()
                );
                Error::file(path, detail)
            })?;
            rows.push(row);
        }
        Ok(Metrics { columns, rows })
    }

    /// The values of a column, NaN where a row has none.
    pub fn column(&self, name: &str) -> Option<Vec<f64>> {
        let i = self.columns.iter().position(|c| c == name)?;
        Some(self.rows.iter().map(|row| row.values[i]).collect())
    }

    /// (step, value) of the rows that have a value in column `name`, for a plot.
    pub fn points(&self, name: &str) -> Option<Vec<(f64, f64)>> {
        let values = self.column(name)?;
        let pairs = self.rows.iter().map(|row| row.step as f64).zip(values);
        Some(pairs.filter(|(_, v)| !v.is_nan()).collect())
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut text = String::from("step");
        for c in &self.columns {
            text.push(',');
            text.push_str(c);
        }
        text.push('\n');
        self.rows.iter().for_each(|row| text.push_str(&row.line()));
        atomic::write(path, text.as_bytes())
    }
}

fn parse_row(line: &str, columns: usize) -> Option<Row> {
    let mut fields = line.split(',');
    let step = fields.next()?.trim().parse().ok()?;
    let values = fields
        .map(|f| match f.trim() {
            "" => Some(f64::NAN),
            f => f.parse().ok(),
        })
        .collect::<Option<Vec<f64>>>()?;
    (values.len() == columns).then_some(Row { step, values })
}

/// The shortest text that reads back as the same number; a value that came from
/// an f32 is written with an f32's digits (0.1, not 0.10000000149011612).
fn field(v: f64) -> String {
    let single = v as f32;
    let text = if v.is_nan() {
        String::new()
    } else if f64::from(single) == v {
        format!("{single:?}")
    } else {
        format!("{v:?}")
    };
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn check_columns(columns: &[&str]) -> Result<()> {
    for (i, c) in columns.iter().enumerate() {
        let plain = |ch: char| !ch.is_control() && ch != ',' && ch != '"';
        if c.trim().is_empty() || !c.chars().all(plain) || *c == "step" || columns[..i].contains(c)
        {
            return Err(Error::Config(format!(
                "metrics column {c:?}: unique, non-empty names without commas, quotes \
                 and line breaks are needed, other than `step`"
            )));
        }
    }
    Ok(())
}
