"""Train the fused student in the integers that ship: L1 loss, Adam, cosine learning rate.

    fuseq qat examples/sisr_x3/model.py --fit examples/sisr_x3/qat.py --stages 1,1,2 \
        -b onnx -o build/sisr-qat

An epoch is 100 batches of four patches of dead-leaves images, drawn anew from the seed of the
epoch: a training that is resumed sees what it would have seen.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from data import generated_pairs
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "common"))  # what all examples share

from images import batch

from fuseq.qat import Curriculum, QatModel

BATCHES = 100
IMAGES = 96
RATE = 3e-4


def fit(model: QatModel, curriculum: Curriculum) -> None:
    """Train ``model`` in place through the stages of ``curriculum``."""
    pairs = list(generated_pairs(range(IMAGES)))
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for epoch in curriculum.epochs:
        curriculum.step(epoch)
        rng, losses = np.random.default_rng(epoch), []
        for index in range(BATCHES):
            done = (epoch + index / BATCHES) / curriculum.epochs.stop
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * done)) / 2
            low, high = (torch.from_numpy(images) for images in batch(pairs, 4, 48, rng))
            loss = F.l1_loss(model(low), high)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curriculum.clip_weights()
            losses.append(loss.item())
        print(f"epoch {epoch}  {curriculum.stage.name}  L1 {np.mean(losses):.5f}", flush=True)
