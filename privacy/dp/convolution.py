"""The rule of convolutions in one, two and three dimensions: a linear layer over the patches of its input."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.functional import pad

from privacy.dp.unit_gradients import FormedGradients, OuterProducts, UnitGradients, wide

# U units, R records of a unit, N records, C channels in, O channels out, G groups, L places of the output,
# Q numbers of a patch in one group

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class ConvolutionRule:
    """Stride, padding of every mode, dilation and groups included."""

    parameters = frozenset({"weight", "bias"})

    def refusal(self, layer: nn.Module) -> str | None:
        """See `LayerRule`."""
        return None

    def gradients(
        self,
        layer: Convolution,
        inputs: Sequence[Tensor],
        backprops: Tensor,
        names: Collection[str],
    ) -> Mapping[str, UnitGradients]:
        """See `LayerRule`."""
        grads_UROL = backprops.flatten(3)
        units, records, _, places = grads_UROL.shape
        found: dict[str, UnitGradients] = {}
        if "weight" in names:
            grads_URGXL = grads_UROL.unflatten(2, (layer.groups, -1))
            grads_UTGX = grads_URGXL.permute(0, 1, 4, 2, 3).reshape(
                units, records * places, layer.groups, -1
            )
            rows_NLGQ = patches(layer, inputs[0].flatten(0, 1))
            rows_UTGQ = rows_NLGQ.reshape(units, records * places, layer.groups, -1)
            found["weight"] = OuterProducts(rows_UTGQ, grads_UTGX, layer.weight.shape)
        if "bias" in names:
            found["bias"] = FormedGradients(wide(grads_UROL).sum((1, 3)))
        return found


def patches(layer: Convolution, images: Tensor) -> Tensor:
    """What each place of the output sees [N, L, G, Q], for images [N, C, ...]."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = pad(images, layer._reversed_padding_repeated_twice, mode=mode)
    dimensions = len(layer.kernel_size)
    for place in range(dimensions):
        size, step, gap = layer.kernel_size[place], layer.stride[place], layer.dilation[place]
        windows = windows.unfold(2 + place, gap * (size - 1) + 1, step)[..., ::gap]
    windows = windows.unflatten(1, (layer.groups, -1))
    # [N, G, C / G, *places, *kernel] -> [N, *places, G, C / G, *kernel]
    first_place, first_kernel = 3, 3 + dimensions
    order = (
        0,
        *range(first_place, first_kernel),
        1,
        2,
        *range(first_kernel, first_kernel + dimensions),
    )
    return windows.permute(order).flatten(1 + dimensions + 1).flatten(1, dimensions)
