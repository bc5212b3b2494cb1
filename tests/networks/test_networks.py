"""The project's networks: shapes and counts by hand, forward passes written out again."""

import copy
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coincide.networks import (
    IMAGE_NETWORKS,
    Network,
    Normalize,
    build_image_network,
    build_network,
    linear_head,
    parameter_groups,
)
from coincide.networks.resnet import ResNet18

GRAY, COLOR, LARGE = (1, 28, 28), (3, 32, 32), (3, 96, 96)
SHAPES = {
    "vgg4": [(1, 9, 8), (4, 8, 11), (2, 65, 70)],
    "resnet18": [(1, 11, 8), (2, 65, 70)],
    "small-conv": [(1, 8, 8), (3, 4, 5)],
    "mlp": [(1, 8, 8), (2, 3, 1)],
    "linear": [(1, 8, 8), (2, 3, 1)],
}
CASES = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]


@cache
def built(kind, shape):
    torch.manual_seed(0)
    return build_image_network(kind, shape, [0.4] * shape[0], [0.3] * shape[0])


def image_network(kind, shape, n_clusters=7):
    backbone, width = built(kind, shape)  # large ones take longer to draw than to copy
    return Network(copy.deepcopy(backbone), linear_head(width, n_clusters), width)


def images(shape, n=4, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# -- Networks of feature vectors: committed figures rest on their random draws


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_vector_networks_draw_in_the_same_order(kind):
    torch.manual_seed(5)
    network = build_network(kind, 6, 3)
    after = torch.get_rng_state()

    torch.manual_seed(5)
    head = nn.Linear(6 if kind == "linear" else 256, 3)
    nn.init.normal_(head.weight, 0, 0.1 / head.in_features**0.5)
    first, second = (nn.Linear(6, 256), nn.Linear(256, 256)) if kind == "mlp" else (None, None)
    assert torch.equal(torch.get_rng_state(), after)

    rows = torch.randn(9, 6)
    hidden = rows
    for layer in (first, second) if kind == "mlp" else ():
        hidden = F.batch_norm(layer(hidden), None, None, training=True).relu()
    expected = hidden @ head.weight.T
    assert torch.allclose(network(rows), expected, rtol=0, atol=1e-6)


# -- VGG-4 against Table 8


@pytest.mark.parametrize(
    ("shape", "channels", "last_side"),
    [
        (GRAY, (64, 128, 256, 512), 3),
        (COLOR, (32, 64, 128, 256), 4),
        (LARGE, (128, 256, 512, 1024), 1),
    ],
)
def test_vgg4_has_the_sizes_of_table_8(shape, channels, last_side):
    network = image_network("vgg4", shape, n_clusters=10)
    width = channels[-1] * last_side**2
    expected = width * 10 + 10  # the head
    before = shape[0]
    for after in channels:
        expected += 5 * 5 * before * after  # a convolution without bias
        expected += 2 * after  # scale and shift of its normalization
        before = after
    assert network.width == network.head.in_features == width
    assert n_parameters(network) == expected


@pytest.mark.parametrize("shape", [GRAY, LARGE])
def test_vgg4_forward_written_out(shape):
    network = image_network("vgg4", shape)
    batch = images(shape)
    pixels = (batch - 0.4) / 0.3
    kernels = [parameter for parameter in network.backbone.parameters() if parameter.ndim == 4]
    for number, kernel in enumerate(kernels):
        if number > 0:
            pixels = F.max_pool2d(pixels, 2)
        pixels = F.conv2d(pixels, kernel, stride=1 if shape == GRAY else 2, padding=2)
        pixels = F.batch_norm(pixels, None, None, training=True).relu()
    expected = pixels.flatten(1) @ network.head.weight.T
    assert len(kernels) == 4
    assert torch.allclose(network(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
@pytest.mark.parametrize("side", [8, 9, 15, 31, 64])
def test_vgg4_takes_every_small_image(n_channels, side):
    shape = (n_channels, side, side + 3)
    _, width = build_image_network("vgg4", shape, [0.0] * n_channels, [1.0] * n_channels)
    assert width == (512 if n_channels == 1 else 256) * (side // 8) * ((side + 3) // 8)


# -- ResNet-18 against torchvision's names and the paper


def torchvision_names():
    """Return the keys of torchvision's resnet18, in its order, without ``fc``."""

    def batch_norm(name):
        last = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{name}.{part}" for part in last]

    names = ["conv1.weight", *batch_norm("bn1")]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            path = f"layer{stage}.{block}"
            names += [f"{path}.conv1.weight", *batch_norm(f"{path}.bn1")]
            names += [f"{path}.conv2.weight", *batch_norm(f"{path}.bn2")]
            if stage > 1 and block == 0:
                names += [f"{path}.downsample.0.weight", *batch_norm(f"{path}.downsample.1")]
    return names


@pytest.mark.parametrize(
    ("shape", "stem", "count"),
    # 11,689,512 in torchvision's and 11,173,962 in the usual CIFAR form, less their classifiers.
    [(LARGE, (64, 3, 7, 7), 11_689_512 - 513_000), (COLOR, (64, 3, 3, 3), 11_173_962 - 5_130)],
)
def test_resnet18_has_torchvisions_names_and_counts(shape, stem, count):
    network = ResNet18(shape)
    assert list(network.state_dict()) == torchvision_names()
    assert network.conv1.weight.shape == stem
    assert n_parameters(network) == count


@pytest.mark.parametrize("shape", [(3, 40, 24), (3, 70, 90)])
def test_resnet18_forward_written_out(shape):
    network = ResNet18(shape).eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running_var" in name or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif "running_mean" in name or name.endswith("bias"):
                tensor.uniform_(-0.5, 0.5)
    weights = network.state_dict()

    def convolution(pixels, path, normalization, stride=1):
        kernel = weights[f"{path}.weight"]
        pixels = F.conv2d(pixels, kernel, stride=stride, padding=kernel.shape[2] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(pixels, *(weights[f"{normalization}.{name}"] for name in names))

    batch = images(shape, n=2)
    standard = shape[1] > 64
    pixels = convolution(batch, "conv1", "bn1", stride=2 if standard else 1).relu()
    if standard:
        pixels = F.max_pool2d(pixels, 3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            path = f"layer{stage}.{block}"
            first = stage > 1 and block == 0
            changed = convolution(pixels, f"{path}.conv1", f"{path}.bn1", 2 if first else 1).relu()
            changed = convolution(changed, f"{path}.conv2", f"{path}.bn2")
            if first:
                pixels = convolution(pixels, f"{path}.downsample.0", f"{path}.downsample.1", 2)
            pixels = (pixels + changed).relu()
    expected = pixels.mean((2, 3))
    assert (expected > 0).double().mean() > 0.5
    with torch.no_grad():
        assert torch.allclose(network(batch), expected, rtol=1e-4, atol=1e-4)


def test_torchvisions_weights_load_without_their_classifier():
    giver, taker = ResNet18(LARGE), ResNet18(LARGE)
    weights = {
        **giver.state_dict(),
        "fc.weight": torch.ones(1000, 512),
        "fc.bias": torch.ones(1000),
    }
    given = dict(weights)
    taker.load_state_dict(weights)
    assert torch.equal(taker.layer4[1].conv2.weight, giver.layer4[1].conv2.weight)
    assert weights.keys() == given.keys()  # the caller's own are left whole

    network = image_network("resnet18", LARGE)
    nested = {f"backbone.network.{name}": value for name, value in weights.items()}
    network.load_state_dict({**network.state_dict(), **nested})
    assert torch.equal(network.backbone.network.conv1.weight, giver.conv1.weight)


def test_other_weights_are_still_refused():
    weights = ResNet18(LARGE).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*fcs\.weight"):
        ResNet18(LARGE).load_state_dict({**weights, "fcs.weight": torch.ones(1)})
    with pytest.raises(RuntimeError, match=r"size mismatch for conv1\.weight"):
        ResNet18(COLOR).load_state_dict(weights)


# -- What every image network has in common


def test_every_network_is_tried_below():
    assert SHAPES.keys() == IMAGE_NETWORKS.keys()


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_logits_are_the_head_of_the_backbone(kind, shape):
    network = image_network(kind, shape).eval()
    features = network.backbone(images(shape))
    logits = network(images(shape))
    assert features.shape == (4, network.width)
    assert logits.shape == (4, 7)
    assert torch.equal(logits, network.head(features))


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_gradient_reaches_every_parameter(kind, shape):
    network = image_network(kind, shape)
    network(images(shape)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_evaluation_is_one_image_at_a_time_and_repeats(kind, shape):
    network = image_network(kind, shape)
    network(images(shape))  # moves the running averages
    before = copy.deepcopy(network.eval().state_dict())
    with torch.no_grad():
        together = network(images(shape))
        assert torch.equal(together, network(images(shape)))
        alone = torch.cat([network(image[None]) for image in images(shape)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_channels_last_changes_nothing(kind, shape):
    network = image_network(kind, shape).eval()
    expected = network(images(shape))
    last = images(shape).contiguous(memory_format=torch.channels_last)
    assert torch.allclose(network(last), expected, rtol=1e-4, atol=1e-5)
    network.to(memory_format=torch.channels_last)
    assert torch.allclose(network(last), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_state_makes_the_round_trip(kind, shape):
    giver, taker = image_network(kind, shape), image_network(kind, shape)
    giver(images(shape))
    with torch.no_grad():
        for tensor in (*taker.parameters(), *taker.buffers()):
            tensor.fill_(1)
    taker.load_state_dict(giver.state_dict())
    assert torch.equal(giver.eval()(images(shape)), taker.eval()(images(shape)))


def test_building_starts_in_training_mode_with_untouched_averages_and_randomness():
    before = torch.get_rng_state()
    build_image_network("linear", GRAY, [0.0], [1.0])
    assert torch.equal(torch.get_rng_state(), before)
    backbone, _ = build_image_network("small-conv", GRAY, [0.0], [1.0])
    assert all(module.training for module in backbone.modules())
    tracked = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(tracked) == 3
    assert not any(layer.num_batches_tracked for layer in tracked)


# -- Normalization and head


def test_normalize_by_channel_keeps_the_memory_format():
    batch = images((2, 5, 3)).contiguous(memory_format=torch.channels_last)
    normalized = Normalize([0.25, 0.5], [0.5, 2.0])(batch)
    assert torch.allclose(normalized[:, 0], (batch[:, 0] - 0.25) / 0.5)
    assert torch.allclose(normalized[:, 1], (batch[:, 1] - 0.5) / 2.0)
    assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_normalize_does_not_share_memory_with_what_it_was_given():
    mean = torch.zeros(1)
    layer = Normalize(mean, torch.ones(1))
    mean += 1
    assert layer.mean.item() == 0


@pytest.mark.parametrize(
    ("mean", "std", "sentence"),
    [
        ([0.0], [0.0], "'std' parameter of Normalize must be positive"),
        ([0.0], [1.0, 1.0], "'std' parameter of Normalize must be as long as 'mean', 1"),
        ([math.nan], [1.0], "'mean' parameter of Normalize must be a sequence of finite"),
        ([0.0], [math.inf], "'std' parameter of Normalize must be a sequence of finite"),
        ([], [], "'mean' parameter of Normalize must be a sequence of finite"),
        (0.0, 1.0, "'mean' parameter of Normalize must be a sequence of finite"),
        (None, [1.0], "'mean' parameter of Normalize must be a sequence of finite"),
    ],
)
def test_unfit_statistics_are_refused(mean, std, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        Normalize(mean, std)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 1, 8, 8),  # would be spread over the channels silently
        torch.zeros(3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_what_is_no_batch_of_images_is_refused(batch):
    network = image_network("small-conv", (3, 8, 8))
    with pytest.raises(ValueError, match=r"must be a float tensor \(n, 3, H, W\)"):
        network(batch)


def test_linear_head_starts_as_pytorchs_without_bias():
    torch.manual_seed(3)
    head = linear_head(400, 20)
    torch.manual_seed(3)
    assert torch.equal(head.weight, nn.Linear(400, 20).weight)
    assert not bool(head.bias.any())
    with pytest.raises(ValueError, match="'n_clusters' parameter of linear_head"):
        linear_head(400, 1)


# -- Parameter groups


def test_one_step_moves_each_part_at_its_own_rate():
    network = image_network("small-conv", (1, 8, 8))
    groups = parameter_groups(network, 0.5, 0.125, 0.0)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(groups)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        rate = 0.5 if name.startswith("head.") else 0.125
        assert torch.allclose(before[name] - parameter, torch.full_like(parameter, rate)), name


def test_every_parameter_is_in_one_group_and_decays():
    network = image_network("small-conv", (1, 8, 8))
    groups = parameter_groups(network, 0.1, weight_decay=0.01)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in network.parameters())
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(0.1, 0.01)}


def test_biases_and_normalization_can_be_spared():
    network = image_network("small-conv", (1, 8, 8))
    groups = parameter_groups(network, 0.1, 0.2, 0.01, decay_all=False)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    spared = {id(layer.bias) for layer in network.modules() if hasattr(layer, "bias")}
    spared |= {id(x.weight) for x in network.modules() if isinstance(x, nn.BatchNorm2d)}
    for parameter in network.parameters():
        assert decay[id(parameter)] == (0.0 if id(parameter) in spared else 0.01)
    assert [group["lr"] for group in groups] == [0.2, 0.2, 0.1, 0.1]
    assert sum(len(group["params"]) for group in groups) == len(decay)


def test_frozen_parameters_are_left_out():
    network = image_network("small-conv", (1, 8, 8))
    network.backbone.requires_grad_(False)
    (group,) = parameter_groups(network, 0.1, 0.2)
    assert group["params"] == list(network.head.parameters())
    assert group["lr"] == 0.1


def test_a_network_without_parts_has_one_rate():
    network = build_network("mlp", 4, 3)
    (group,) = parameter_groups(network, 0.1, weight_decay=0.01)
    assert len(group["params"]) == len(list(network.parameters()))
    with pytest.raises(ValueError, match="must be None for a network without a backbone"):
        parameter_groups(network, 0.1, 0.2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0), ("backbone_learning_rate", -1.0), ("weight_decay", math.nan)],
)
def test_unfit_rates_are_refused(name, value):
    rates = {"learning_rate": 0.1, "backbone_learning_rate": 0.1, "weight_decay": 0.0}
    with pytest.raises(ValueError, match=f"'{name}' parameter of parameter_groups"):
        parameter_groups(image_network("linear", (1, 2, 2)), **{**rates, name: value})
