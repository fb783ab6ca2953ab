"""Where the checks of this folder run: a GPU if there is one, else Triton's interpreter."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
