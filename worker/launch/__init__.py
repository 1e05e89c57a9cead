"""The path from a manifest to running ranks: topology, processes, exit codes."""
