"""How chains, agents and conversations are kept: one file each, held by one process, sealed where it must be."""
