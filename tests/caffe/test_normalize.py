import pytest
import torch

from multibox.ssd.backbones.vgg import L2Norm


@pytest.mark.parametrize("scales", ["equal_scales", "different_scales"])
@pytest.mark.parametrize("gradient", ["exact", "caffe"])
def test_l2_normalisation(recorded, compare, scales: str, gradient: str) -> None:
    """The derivative is Caffe's gradient only while all scales are equal."""
    z = {
        name: torch.from_numpy(recorded("normalize")[f"{scales}.{name}"])
        for name in ("x", "scale", "d_y", "y", "d_x", "d_scale")
    }
    layer = L2Norm(16, gradient)
    layer.weight.data.copy_(z["scale"])
    x = z["x"].requires_grad_()
    y = layer(x)
    y.backward(z["d_y"])
    compare("y", y.detach(), z["y"], tolerance=1e-6, relative=True)
    compare("d_scale", layer.weight.grad, z["d_scale"], tolerance=1e-6, relative=True)
    # Where x is 0 its gradient is 10^5 times as large as elsewhere, so each position is scaled.
    length = z["x"].detach().square().sum(dim=1, keepdim=True).add(L2Norm.EPSILON).sqrt()
    ours, theirs = x.grad * length, z["d_x"] * length
    if (scales, gradient) == ("different_scales", "exact"):
        difference = (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
        print(f"d_x, derivative: {difference:.0%} rms from Caffe's")  # noqa: T201  # the summary
        assert difference > 0.05
    else:
        compare("d_x", ours, theirs, tolerance=1e-6, relative=True)
