"""Files of weights by torchvision, for `resnet` and its tests.

    python make_weights.py OUT.safetensors          ResNet-18 as torchvision builds it, 1000 classes
    python make_weights.py --pretrained OUT          the same with torchvision's ImageNet weights (downloads them)
    python make_weights.py --width 16 --classes 10 OUT.safetensors
    python make_weights.py --golden tests/golden     the narrow network, its logits, and five steps of training

Without `--pretrained` the weights are torchvision's initial ones and the running statistics those of a few
batches: nothing is left at its default, and activations keep their size through the network.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.resnet import BasicBlock, ResNet


class Narrow(ResNet):
    """ResNet-18 with another number of channels in its first stage than 64."""

    def __init__(self, width, classes):
        self.width = width
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=classes)
        self.fc = torch.nn.Linear(8 * width, classes)

    def _make_layer(self, block, planes, *arguments, **options):
        if planes == 64:
            self.inplanes = self.width
            self.conv1 = torch.nn.Conv2d(3, self.width, 7, stride=2, padding=3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(self.width)
        return super()._make_layer(block, planes * self.width // 64, *arguments, **options)


def network(width, classes, size):
    torch.manual_seed(18)
    model = Narrow(width, classes)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.1)
        for _ in range(10):
            model(torch.randn(8, 3, size, size))
    return model


def state(model):
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def inputs(pixels):
    return pixels.float() / 127.5 - 1.0


def golden(folder):
    model = network(width=4, classes=10, size=48)
    save_file(state(model), folder / "resnet18-narrow.safetensors")
    pixels = torch.randint(0, 256, (40, 3, 48, 48), dtype=torch.uint8)
    labels = torch.arange(40) % 10
    result = {"pixels": pixels, "labels": labels.to(torch.int32)}
    with torch.no_grad():
        result["logits"] = model.eval()(inputs(pixels[:8]))
        image = torchvision.io.decode_image(folder / "photo.png", torchvision.io.ImageReadMode.RGB)
        preset = torchvision.transforms._presets.ImageClassification(crop_size=224)
        result["photo"] = model(preset(image)[None])[0]
    model.train()
    # The optimizer of the paper.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(5):
        batch = slice(8 * step, 8 * step + 8)
        loss = torch.nn.functional.cross_entropy(model(inputs(pixels[batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    result["losses"] = torch.stack(losses)
    save_file(result, folder / "expected.safetensors")
    save_file(state(model), folder / "resnet18-narrow-trained.safetensors")


def photo(path):
    """A picture of gradients and edges, of a size that has to be reduced and cropped."""
    y, x = np.mgrid[0:300, 0:400].astype(np.float64)
    red = 255 * x / 399
    green = 127.5 + 127.5 * np.sin(x / 9.0) * np.cos(y / 13.0)
    blue = np.where((x // 40 + y // 40) % 2 == 0, 220, 30)
    pixels = torch.from_numpy(np.stack([red, green, blue]).astype(np.uint8))
    torchvision.io.write_png(pixels, str(path))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--classes", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.golden:
        arguments.out.mkdir(parents=True, exist_ok=True)
        photo(arguments.out / "photo.png")
        golden(arguments.out)
    elif arguments.pretrained:
        save_file(state(torchvision.models.resnet18(weights="IMAGENET1K_V1")), arguments.out)
    else:
        save_file(state(network(arguments.width, arguments.classes, size=64)), arguments.out)


if __name__ == "__main__":
    main()
