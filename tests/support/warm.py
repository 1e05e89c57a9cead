"""Imported by the server that test processes are forked from: what every job begins with."""

from worker.model.skeleton import require_size

BACKBONE = "shufflenet_v2_x0_5"
"""Small and quick, with batch norm."""
SIDE = 32

require_size(BACKBONE, SIDE, 224)
