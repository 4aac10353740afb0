"""Recipe → trained encoder: build, rehearse, train, watch, plan."""
