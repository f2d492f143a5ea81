from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from refused import refused
from torch import nn

from fedrobust.errors import ExperimentError
from fedrobust.learning import Cnn, Model, Timm, model_shorthand
from fedrobust.learning import networks as networks_module
from fedrobust.learning.vector import parameters_to_vector, size
from fedrobust.options import OneOf, Options

TINY = "test_resnet.r160_in1k"


class Holder(Options):
    model: Annotated[Model, OneOf(Model, shorthand=model_shorthand)] = Cnn()


def test_the_benchmark_network_has_its_known_number_of_parameters() -> None:
    network = Cnn(channels=(32, 64), norm="none", pool="flatten", hidden=128).build(9, 28, seed=0)
    assert size(network) == 422_089


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("pool", ["average", "flatten"])
@pytest.mark.parametrize("hidden", [None, 12])
def test_every_cnn_gives_logits_for_odd_sizes_too(norm: str, pool: str, hidden: int | None) -> None:
    network = Cnn(channels=(5, 8), norm=norm, pool=pool, hidden=hidden).build(3, 27, seed=0)
    assert network(torch.randn(4, 3, 27, 27)).shape == (4, 3)
    assert any(isinstance(layer, nn.GroupNorm) for layer in network) == (norm == "group")


@pytest.mark.parametrize("size", [8, 9])  # of odd sides the last column is not pooled
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_before_relu_gives_the_bits_of_relu_before_pooling(size: int, layout: torch.memory_format) -> None:
    """Ties, zeros and values that are not finite included, forwards and backwards."""
    draw = torch.Generator().manual_seed(0)
    values = torch.tensor([-1.0, -0.0, 0.0, 0.5, 2.0, float("inf"), float("-inf"), float("nan")])
    drawn = values[torch.randint(len(values), (6, 4, size, size), generator=draw)]
    weights = torch.randn(6, 4, size // 2, size // 2, generator=draw)
    found = []
    for layers in ((nn.MaxPool2d(2), nn.ReLU()), (nn.ReLU(), nn.MaxPool2d(2))):
        images = drawn.clone().contiguous(memory_format=layout).requires_grad_()
        result = nn.Sequential(*layers)(images)
        (result * weights).nan_to_num().sum().backward()
        assert images.grad is not None
        found.append((result.detach(), images.grad))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first.nan_to_num(7.0), second.nan_to_num(7.0))
    assert [type(layer) for layer in Cnn(channels=(4,), norm="none").build(2, 8, seed=0)][:3] == [
        nn.Conv2d,
        nn.MaxPool2d,
        nn.ReLU,
    ]


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = parameters_to_vector(Cnn().build(2, 16, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert np.array_equal(first, parameters_to_vector(Cnn().build(2, 16, seed=1)))
    assert not np.array_equal(first, parameters_to_vector(Cnn().build(2, 16, seed=2)))


def test_images_that_are_too_small_are_refused_with_the_remedy() -> None:
    with pytest.raises(ExperimentError, match=r"3 blocks .* 7 pixels .* 2 entries"):
        Cnn().build(2, 7, seed=0)
    assert Cnn(channels=(4, 4)).build(2, 7, seed=0)


@pytest.mark.parametrize("channels", [(), (16, 0)])
def test_impossible_channels_are_refused(channels: tuple[int, ...]) -> None:
    with pytest.raises(ExperimentError):
        Cnn(channels=channels)


def test_shorthand() -> None:
    assert Holder.model_validate({"model": "timm:resnet18"}).model == Timm(model="resnet18")
    assert Holder.model_validate({"model": "cnn"}).model == Cnn()
    assert model_shorthand("cnn") is None
    assert model_shorthand("package.module:Class") is None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model": "resnet81"}, {"path": "model", "hint": "did you mean 'resnet18'?"}),
        ({"model": ""}, {"path": "model", "found": "''"}),
        ({"model": "hf-hub:someone/resnet18"}, {"path": "model", "found": "'hf-hub:someone/resnet18'"}),
        ({"model": "test_resnet.r999"}, {"path": "model", "found": "'r999'", "allows": "r160_in1k"}),
        ({"model": "resnet18", "batch_norm": "drop"}, {"path": "batch_norm", "found": "'drop'"}),
    ],
)
def test_unknown_timm_names_are_refused(options: dict[str, str], problem: dict[str, Any]) -> None:
    with refused(**problem):
        Timm(**options)


def test_pretrained_is_refused_where_timm_has_no_weights() -> None:
    import timm

    name = next(name for name in timm.list_models() if not timm.list_pretrained(f"{name}.*"))
    with refused(path="pretrained"):
        Timm(model=name, pretrained=True)


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_timm_networks_have_no_batch_norm_and_reproducible_weights(model: str) -> None:
    network = Timm(model=model).build(4, 64, seed=3)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 4)
    again = Timm(model=model).build(4, 64, seed=3)
    assert np.array_equal(parameters_to_vector(network), parameters_to_vector(again))


def test_group_norm_keeps_scale_shift_and_the_activation_that_timm_fuses() -> None:
    import timm

    for name in ("test_resnet", "test_efficientnet"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            original = timm.create_model(name, num_classes=2)
        converted = timm.create_model(name, num_classes=2)
        converted.load_state_dict(original.state_dict())
        networks_module.replace_batch_norm(converted, group=True)
        assert size(converted) == size(original)
        # Both normalise to zero mean and unit variance per channel group: feed features where these agree.
        norms = [layer for layer in original.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            parent = nn.Sequential(norm)
            networks_module.replace_batch_norm(parent, group=True)
            features = torch.randn(1, norm.num_features, 6, 6)
            features = (features - features.mean((2, 3), keepdim=True)) / features.std((2, 3), False, keepdim=True)
            norm.train()
            assert torch.allclose(parent(features), norm(features), atol=1e-3)


def test_kept_batch_norm_has_no_running_statistics() -> None:
    network = Timm(model="test_resnet", batch_norm="keep").build(3, 64, seed=0)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(8, 3, 64, 64) * 5 + 3
    network.train()
    in_training = network(images)
    assert torch.allclose(network.eval()(images), in_training, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any("running" in name for name in before)


def test_a_network_that_cannot_train_on_one_patch_is_refused() -> None:
    with pytest.raises(ExperimentError, match="28 pixels: Expected"):
        Timm(model="resnet18", batch_norm="keep").build(3, 28, seed=0)
    with pytest.raises(ExperimentError, match="model timm"):
        Timm(model="test_vit").build(3, 30, seed=0)


class Statistics(Model):
    """A user's network that has running statistics."""

    name: str = "user"

    def network(self, classes: int, size: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, classes)
        )


class Wide(Statistics):
    """A user's network with the wrong number of outputs."""

    def network(self, classes: int, size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, classes + 1))


def test_users_networks_are_checked() -> None:
    with pytest.raises(ExperimentError, match=r"'1\.running_mean'"):
        Statistics().build(2, 8, seed=0)
    with pytest.raises(ExperimentError, match=r"\(1, 3\) .* \(1, 2\)"):
        Wide().build(2, 8, seed=0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An empty Hugging Face cache, and a hub at an address where nothing listens."""
    from huggingface_hub import constants

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(networks_module, "PROBE_SECONDS", 0.3)
    return monkeypatch


def test_pretrained_weights_offline_are_one_clear_line(hub: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExperimentError, match=r"refused.* pretrained: false") as caught:
        Timm(model=TINY, pretrained=True).build(2, 32, seed=0)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_from_a_hub_that_never_answers(hub: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hub.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ExperimentError, match="timed out"):
            Timm(model=TINY, pretrained=True).build(2, 32, seed=0)


def test_pretrained_weights_in_the_cache_need_no_network(hub: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    weights = timm.create_model("test_resnet").state_dict()
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(weights, snapshot / "model.safetensors")
    network = Timm(model="test_resnet", pretrained=True).build(2, 32, seed=0)
    assert torch.equal(network.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_options_are_read_without_torch() -> None:
    code = (
        "import sys, fedrobust.learning as l; l.LocalTraining(optimizer='adam', loss='logit_adjusted'); "
        "l.Cnn(); l.FedYogi(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'pytorch_lightning', 'timm', 'torchmetrics')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
