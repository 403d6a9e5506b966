//! The scenarios that the program brings along, as they stand in `config/scenarios/`.

/// Name and text of each, in the order to tell them.
pub const SHIPPED: [(&str, &str); 6] = [
    ("small", include_str!("../../config/scenarios/small.toml")),
    ("faults", include_str!("../../config/scenarios/faults.toml")),
    ("island", include_str!("../../config/scenarios/island.toml")),
    ("standby", include_str!("../../config/scenarios/standby.toml")),
    ("second-edge", include_str!("../../config/scenarios/second-edge.toml")),
    ("scale", include_str!("../../config/scenarios/scale.toml")),
];
