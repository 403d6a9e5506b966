//! One node of a cell in a process of its own.

use std::io::{self, Write};

use super::order::Order;
use super::{Cell, CellOptions, network, settings};
use crate::experiment::ExperimentError;
use crate::experiment::federation::{Federation, Works};
use crate::ids::Digest;
use crate::learn::Images;
use crate::trust::keyring::Role;

/// Runs the node of an order until SIGTERM, and tells how far it is on `out`. Blocks.
///
/// # Errors
/// [`ExperimentError`]; [`ExperimentError::Order`] when it can't be followed.
pub fn run_node(
    order: &Order,
    images: Option<Images>,
    out: &mut dyn Write,
) -> Result<(), ExperimentError> {
    let cell: Cell = order.cell.parse().map_err(ExperimentError::Order)?;
    let options = CellOptions {
        folder: order.folder.clone(),
        rounds: order.rounds,
        local_epochs: order.local_epochs,
        seed: order.seed,
        lanes: 1,
        most_images: None,
        patience_s: 0,
        broker: Some(order.broker()),
        processes: None,
    };
    let settings = settings(&cell, &options)?;
    let config = network::config(&cell, order.classes);
    let model = network::described(&config, order.seed)?;
    if model != order.model {
        let other = format!("the cell's network is {:?}, a process has {model:?}", order.model);
        return Err(ExperimentError::Order(other));
    }
    let federation = Federation {
        settings: &settings,
        base: Digest::of(order.config.as_bytes()),
        folder: &order.folder,
        patience_s: options.patience_s,
        at_once: options.lanes,
        broker: options.broker.as_ref(),
        apart: None,
    };
    let start = config.model.initial(order.seed)?;
    let works = |role| -> Result<Works, ExperimentError> {
        match (role, images) {
            (Role::Device, Some(images)) => {
                let part = network::part(&cell, config, order.seed)?;
                Ok(Works::alone(part, images.into()))
            }
            (Role::Device, None) => Err(ExperimentError::Order("a device without images".into())),
            (Role::Edge, _) => {
                let back = network::back(&cell, config, order.seed)?;
                Ok(back.map_or(Works::Owner, Works::Back))
            }
            _ => Ok(Works::Owner),
        }
    };
    federation.run_one(&order.node, &start, works, &mut |said| -> io::Result<()> {
        serde_json::to_writer(&mut *out, said)?;
        out.write_all(b"\n")?;
        out.flush()
    })
}
