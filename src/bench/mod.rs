//! Measuring: the workloads that the `bench` command and the criterion benches
//! share, the ceilings of a device, reports of what was measured, where the time
//! of a plan goes, and which variants are fastest.

mod cases;
mod ceilings;
mod measure;
mod report;
mod run;
mod trace;
mod tune;

pub use cases::{Case, Direction, Planned, Prepared, WORKLOADS, Workload};
pub use ceilings::{Ceilings, kernels};
pub use measure::{Effort, TimeKind, Timing, Watch, measure};
pub use report::{
    Bound, CaseResult, Comparison, Limit, Report, Share, Standing, Work, bind, compare,
};
pub use run::{Variant, run_case, variants};
pub use trace::{Profile, Row, chrome_trace, split_label};
pub use tune::{Measured, Subject, WORTHWHILE, subjects};
