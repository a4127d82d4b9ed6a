"""The differences between engines, one module per engine; see `interface`."""
