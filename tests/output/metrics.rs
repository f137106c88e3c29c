//! Tables of metrics.

use crate::support::*;
use demist::Error;
use demist::output::metrics::{Metrics, MetricsWriter};
use std::fs;
use std::path::PathBuf;

fn metrics_file() -> (tempfile::TempDir, PathBuf) {
    let dir = temp();
    let path = dir.path().join("metrics.csv");
    (dir, path)
}

#[test]
fn rows_are_visible_at_once_and_read_back() {
    let (_dir, path) = metrics_file();
    let mut w = MetricsWriter::create(&path, &["loss", "grad_norm", "seconds"]).unwrap();
    w.append(10, &[f64::from(0.1f32), f64::NAN, 12.0]).unwrap();
    w.append(20, &[1e-9, f64::INFINITY, 1.0 / 3.0]).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text, "step,loss,grad_norm,seconds\n10,0.1,,12\n20,1e-9,inf,0.3333333333333333\n");
    let m = Metrics::read(&path).unwrap();
    assert_eq!(m.columns, ["loss", "grad_norm", "seconds"]);
    assert_eq!(m.column("seconds").unwrap(), [12.0, 1.0 / 3.0]);
    assert_eq!(m.points("loss").unwrap(), [(10.0, 0.1), (20.0, 1e-9)]);
    assert_eq!(m.points("grad_norm").unwrap(), [(20.0, f64::INFINITY)]);
    assert_eq!(m.column("none"), None);
    assert!(matches!(w.append(30, &[1.0]), Err(Error::Shape { .. })));
}

#[test]
fn resuming_drops_later_rows_and_a_torn_line() {
    let (_dir, path) = metrics_file();
    fs::write(&path, "step,loss\n1,0.5\n2,0.4\n3,0.3\n4,0.2").unwrap();
    assert_eq!(Metrics::read(&path).unwrap().rows.len(), 3, "the torn row 4 is left out");
    let mut w = MetricsWriter::resume(&path, &["loss"], 2).unwrap();
    w.append(3, &[0.25]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss\n1,0.5\n2,0.4\n3,0.25\n");
    // A torn line is dropped even if no row is: the next row must start a line.
    fs::write(&path, "step,loss\n1,0.5\n2,0.").unwrap();
    MetricsWriter::resume(&path, &["loss"], 9).unwrap().append(2, &[7.0]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss\n1,0.5\n2,7\n");
}

#[test]
fn resuming_without_a_file_or_with_other_columns() {
    let (_dir, path) = metrics_file();
    MetricsWriter::resume(&path, &["loss"], 5).unwrap().append(6, &[1.0]).unwrap();
    let mut w = MetricsWriter::resume(&path, &["fid", "loss"], 6).unwrap();
    w.append(7, &[30.5, 0.5]).unwrap();
    let mut w = MetricsWriter::resume(&path, &["fid"], 7).unwrap();
    w.append(8, &[20.0]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss,fid\n6,1,\n7,0.5,30.5\n8,,20\n");
    fs::write(&path, "").unwrap();
    MetricsWriter::resume(&path, &["loss"], 6).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss\n");
}

#[test]
fn files_that_are_no_metrics_are_refused_and_kept() {
    let (dir, path) = metrics_file();
    let cases: [&[u8]; 5] = [
        b"time,loss\n1,2\n",
        b"step,loss\n1,x\n2,3\n",
        b"step,loss\n1,2,3\n2,3\n",
        b"step,loss\n-1,2\n",
        b"step,\xff\n1,2\n",
    ];
    for bytes in cases {
        fs::write(&path, bytes).unwrap();
        for error in [
            Metrics::read(&path).unwrap_err(),
            MetricsWriter::resume(&path, &["loss"], 9).unwrap_err(),
        ] {
            assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    fs::write(&path, "step,loss\n1,2\n3,oops\n").unwrap();
    assert!(Metrics::read(&path).unwrap_err().to_string().contains("line 3"));
    assert!(matches!(Metrics::read(dir.path()), Err(Error::Io { .. })));
    for columns in [&["a,b"][..], &[""], &["step"], &["a", "a"], &["a\nb"]] {
        let made = MetricsWriter::create(&dir.path().join("new.csv"), columns);
        assert!(matches!(made, Err(Error::Config(_))), "{columns:?}");
    }
    assert_eq!(names(dir.path()), ["metrics.csv"]);
}
