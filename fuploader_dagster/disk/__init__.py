"""Everything that touches the local disk: durable writes, names, modes, crash points."""
