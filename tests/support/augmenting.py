"""A picture to augment."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 48


def picture(height: int = 90, width: int = 120, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    return torch.from_numpy(np.array(small.resize((width, height)))).permute(2, 0, 1)
