//! Progress bars.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::sync::LazyLock;

/// All bars, so that one for compiling can stand below another.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A bar with elapsed time, ETA and a message.
pub fn bar(total: u64, what: &str) -> ProgressBar {
    let bar = BARS.add(ProgressBar::new(total));
    let template =
        format!("{what} {{wide_bar}} {{pos}}/{{len}}  {{elapsed}} (eta {{eta}})  {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}
