//! What several commands share. A command imports from here, and from no other command.

mod bars;
mod classes;
mod data;
mod device;
mod drawing;
mod effort;
mod explain;
mod images;
mod networks;
mod origin;
mod outputs;
mod process;
mod quantities;
mod stop;

pub use bars::bar;
pub use classes::{check_count, classes_typed, number_of_classes};
pub use data::open_data;
pub use device::{DeviceArgs, open_device};
pub use drawing::{draws_from_noise, watch};
pub use effort::effort;
pub use explain::print_choices;
pub use images::{GivenImages, read_images};
pub use networks::{named_network, print_network, print_process};
pub use origin::command_line;
pub use outputs::{OutputKind, file_name_part, prepare_output};
pub use process::{ProcessArgs, check_scale, describe};
pub use quantities::{parse_bytes, time_limit};
use stop::stops_compiling;
pub use stop::{keep_compiling, stop_on_ctrl_c};
