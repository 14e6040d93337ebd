"""A ResNet-20 for CIFAR-10 as He et al. (2016) describe it: an example of a network of one's own for a study."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class EverySecond(nn.Module):
    """The parameter-free shortcut: every second pixel, and zero channels before and after to double their number."""

    def forward(self, x: Tensor) -> Tensor:
        """From ``[B, C, H, W]`` to ``[B, 2C, H/2, W/2]``."""
        half = x.shape[1] // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


def stage(inputs: int, outputs: int) -> nn.Sequential:
    """Three residual blocks; the first halves the resolution where it doubles the channels."""
    first = BasicBlock(inputs, outputs, 1 if inputs == outputs else 2, None if inputs == outputs else EverySecond())
    return nn.Sequential(first, BasicBlock(outputs, outputs), BasicBlock(outputs, outputs))


class ResNet20(nn.Module):
    """16, 32 and 64 channels on 32 x 32 images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3 = stage(16, 16), stage(16, 32), stage(32, 64)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]`` for ``[B, 3, 32, 32]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def resnet20() -> ResNet20:
    """The network that the study names."""
    return ResNet20()
