"""Pretrained encoders: what they compute, which of their weights are trained, and which files are refused."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytest
import timm
import torch
from encoded import ENCODER, write_weights
from refused import refused
from safetensors.torch import save_file

from fedrobust.data.batches import to_tensor
from fedrobust.errors import ExperimentError
from fedrobust.experiment_file import load
from fedrobust.learning import Encoder
from fedrobust.learning.encoders import EncoderNetwork
from fedrobust.learning.models import model_shorthand
from fedrobust.learning.vector import parameters_to_vector, trainable

PATCHES = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    write_weights(file)
    return str(file)


def made(weights: str, seed: int = 1, **options: Any) -> EncoderNetwork:
    network = Encoder.model_validate({"encoder": f"timm:{ENCODER}", "weights": weights, "size": 32} | options).build(
        2, 24, seed
    )
    assert isinstance(network, EncoderNetwork)
    return network


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_it_computes_what_timm_computes_of_the_resized_patches(suffix: str, tmp_path: Path) -> None:
    """With the mean and the standard deviation of its own pretraining; a classifier in the file is left out."""
    write_weights(tmp_path / f"w{suffix}")
    network = made(str(tmp_path / f"w{suffix}")).eval()
    write_weights(tmp_path / "other.safetensors")
    own = timm.create_model(ENCODER, num_classes=0).eval()
    state = timm.models.load_state_dict(str(tmp_path / "other.safetensors"))
    own.load_state_dict({name: value for name, value in state.items() if not name.startswith("classifier")})
    config = timm.get_pretrained_cfg(ENCODER)
    scaled = torch.from_numpy(PATCHES).permute(0, 3, 1, 2).float() / 255
    scaled = (scaled - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
    images = torch.nn.functional.interpolate(scaled, (32, 32), mode="bicubic", antialias=True)
    with torch.no_grad():
        np.testing.assert_allclose(network.features(to_tensor(PATCHES)), own(images), rtol=1e-3, atol=1e-4)


def test_only_the_head_is_trained_and_the_encoder_stays_as_it_was(weights: str) -> None:
    network = made(weights).train()
    assert len(parameters_to_vector(network)) == 256 * 2 + 2
    assert network.head.training and not any(each.training for each in network.encoder.modules())
    statistics = {name: value.clone() for name, value in network.encoder.named_buffers()}
    network(to_tensor(PATCHES)).sum().backward()
    assert all(torch.equal(value, statistics[name]) for name, value in network.encoder.named_buffers())
    assert all(each.grad is None for each in network.encoder.parameters())
    assert len(parameters_to_vector(made(weights, head="mlp", hidden=16))) == 257 * 16 + 17 * 2


def test_the_last_block_or_everything_may_be_trained(weights: str) -> None:
    """A network of its own: the frozen encoder of others does not change with it."""
    head, last, everything = (trainable(made(weights, trainable=part)) for part in ("head", "last_block", "all"))
    assert len(head) < len(last) < len(everything)
    assert len(everything) - 2 == len(list(timm.create_model(ENCODER, num_classes=0).parameters()))
    network = made(weights, trainable="last_block")
    names = [name for name, each in network.encoder.named_parameters() if each.requires_grad]
    assert "blocks.4.0.conv_pw.weight" in names and not any(name.startswith("blocks.3") for name in names)
    with torch.no_grad():
        trainable(network)[0].add_(1)
    assert torch.equal(next(made(weights).encoder.parameters()), next(made(weights).encoder.parameters()))
    assert not any(each.requires_grad for each in made(weights).encoder.parameters())


def test_options_reach_timm_and_the_scaling_is_the_users(tmp_path: Path) -> None:
    """As pathology's encoders need it: layer scale, layers of timm, mean and deviation of ImageNet."""
    options = {"init_values": 1e-5, "mlp_layer": "timm.layers:SwiGLUPacked", "act_layer": "silu"}
    layers = {"init_values": 1e-5, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": "silu"}
    with torch.random.fork_rng(devices=[]):
        own = timm.create_model("test_vit", num_classes=0, **layers)
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    of_imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    network = made(str(tmp_path / "w.safetensors"), encoder="timm:test_vit", size=None, options=options, **of_imagenet)
    grey = np.full((1, 24, 24, 3), 255, dtype=np.uint8)
    with torch.no_grad():
        white = (1 - torch.tensor(of_imagenet["mean"])) / torch.tensor(of_imagenet["std"])
        expected = own.eval()(white.view(1, 3, 1, 1).expand(1, 3, 160, 160))
        np.testing.assert_allclose(network.features(to_tensor(grey)), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ExperimentError, match=r"options\.mlp_layer: timm has no layer 'timm\.layers:SwiGLU_'"):
        made(
            str(tmp_path / "w.safetensors"),
            encoder="timm:test_vit",
            options={"mlp_layer": "timm.layers:SwiGLU_"},
            size=None,
        )
    with pytest.raises(ExperimentError, match=r"blocks\.0\.ls1\.gamma.*unknown"):
        made(str(tmp_path / "w.safetensors"), encoder="timm:test_vit", size=None)


@pytest.mark.parametrize("encoder", ["test_vit", "test_resnet"])
def test_the_last_block_of_other_families(encoder: str, tmp_path: Path) -> None:
    write_weights(tmp_path / "w.pth", encoder)
    network = made(str(tmp_path / "w.pth"), encoder=f"timm:{encoder}", size=None, trainable="last_block")
    names = {name for name, each in network.encoder.named_parameters() if each.requires_grad}
    assert {name.split(".")[0] for name in names} in ({"blocks", "norm"}, {"blocks", "fc_norm"}, {"layer4"})


def test_the_head_depends_on_the_seed_alone(weights: str, tmp_path: Path) -> None:
    """Whether the encoder was read before, or in this call; and torch's generator is not changed."""
    before = torch.get_rng_state()
    first = parameters_to_vector(made(weights, seed=3))
    write_weights(tmp_path / "copy.safetensors")
    assert np.array_equal(parameters_to_vector(made(str(tmp_path / "copy.safetensors"), seed=3)), first)
    assert np.array_equal(parameters_to_vector(made(weights, seed=3)), first)
    assert not np.array_equal(parameters_to_vector(made(weights, seed=4)), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_is_moved_leaves_the_encoder_of_the_others(weights: str) -> None:
    """To a GPU, say, or to another layout in memory: then its last bits may differ."""
    first, second = made(weights), made(weights)
    assert first.encoder is second.encoder, "in memory once"
    first.to(dtype=torch.float64, memory_format=torch.channels_last)
    assert first(to_tensor(PATCHES).double()).dtype == torch.float64
    stem = next(second.encoder.parameters())
    assert stem.dtype == torch.float32 and stem.is_contiguous()
    assert made(weights).encoder is second.encoder is first.source[0]


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    write_weights(file, seed=1)
    first = made(str(file)).eval().features(to_tensor(PATCHES))
    write_weights(file, seed=2)
    os.utime(file, (1, 1))
    assert not torch.allclose(made(str(file)).eval().features(to_tensor(PATCHES)), first)


class Evil:
    """What a pickle may hold."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_files_that_are_not_its_weights_are_refused(weights: str, workplace: Path) -> None:
    def fails(file: str, says: str, **options: Any) -> None:
        with pytest.raises(ExperimentError, match=says):
            made(file, **options)

    fails("none.pth", r"none\.pth: No such file")
    Path("text.pth").write_text("no weights")
    fails("text.pth", r"text\.pth cannot be read")
    Path("text.safetensors").write_text("no weights")
    fails("text.safetensors", r"text\.safetensors cannot be read")
    torch.save(Evil(), "evil.pth")
    fails("evil.pth", r"evil\.pth cannot be read")
    assert not Path("ran").exists()
    fails(weights, r"are not those of timm's 'test_vit': .*missing; .*unknown", encoder="timm:test_vit", size=None)
    state = timm.models.load_state_dict(weights)
    torch.save(state | {"conv_stem.weight": torch.zeros(3, 3, 1, 1)}, "shape.pth")
    fails("shape.pth", r"conv_stem\.weight of another shape \(\(3, 3, 1, 1\) instead of")
    torch.save([1, 2], "list.pth")
    fails("list.pth", r"list\.pth cannot be read")


@pytest.mark.parametrize(
    ("options", "path", "says"),
    [
        ("", "learning.model.encoder", "missing"),
        ("encoder: timm:test_efficientnt", "learning.model.encoder", "timm has no such model"),
        ("encoder: 3", "learning.model.encoder", "text"),
        ("encoder: timm:test_vit, std: [0, 1, 1]", "learning.model.std.0", "greater than 0"),
        ("encoder: timm:test_vit, mean: 3", "learning.model.mean", "list"),
        ("encoder: timm:test_vit, head: deep", "learning.model.head", "linear"),
        ("encoder: timm:test_vit, options: {num_classes: 5}", "learning.model.options.num_classes", "not for users"),
    ],
)
def test_errors_name_the_option(options: str, path: str, says: str, workplace: Path) -> None:
    """Although the model's name is also that of one of its options."""
    Path("e.yaml").write_text(f"learning: {{model: {{name: encoder, {options}}}}}\n")
    with refused(path=path, says=says):
        load("e.yaml")


@pytest.mark.parametrize(
    ("options", "path", "says"),
    [
        ("model: {views: 3}", "learning.model.views", "2, 4 or 8"),
        ("model: {views: 8, trainable: all}", "learning.model.views", "for a frozen encoder"),
        ("model: {precision: bfloat16, trainable: last_block}", "learning.model.precision", "for a frozen encoder"),
        ("model: {features: float16, trainable: all}", "learning.model.features", "for a frozen encoder"),
        ("model: {views: 8}, local: {augment: false}", "learning.model.views", "augment is false"),
        ("model: {views: 8}, local: {engine: stacked}", "learning.model.views", "engine: lean"),
    ],
)
def test_options_of_features_that_do_not_fit_are_refused(options: str, path: str, says: str, workplace: Path) -> None:
    Path("e.yaml").write_text(
        f"learning: {{{options}}}\n".replace("model: {", "model: {name: encoder, encoder: timm:test_vit, ")
    )
    with refused(path=path, says=says):
        load("e.yaml")


def test_options_of_features_have_digests_of_their_own_and_change_no_earlier_one(workplace: Path) -> None:
    text = "learning: {{model: {{name: encoder, encoder: timm:test_vit{}}}}}\n"
    found = []
    for more in ("", ", views: 2", ", views: 8", ", precision: bfloat16", ", features: float16"):
        Path("e.yaml").write_text(text.format(more))
        found.append(load("e.yaml").digest())
    assert len(set(found)) == 5
    assert found[0] == "3e84b3359f670d7e7c9ad17305a4b5ba03bc992586ae3bead011d99082474889"


def test_the_options_of_the_docs_can_be_read(workplace: Path) -> None:
    """Those of docs/encoders.md for an encoder of pathology."""
    page = (Path(__file__).parents[2] / "docs/encoders.md").read_text(encoding="utf-8")
    (block,) = [part for part in page.split("```yaml\n")[1:] if part.startswith("model:")]
    Path("e.yaml").write_text("learning:\n" + indent(block.partition("```")[0], "  "))
    model = load("e.yaml").learning.model
    assert isinstance(model, Encoder)
    assert model.mean == (0.485, 0.456, 0.406) and model.std == (0.229, 0.224, 0.225)
    assert model.options == {"init_values": 1e-5}


def test_a_name_at_the_top_is_no_tag(workplace: Path) -> None:
    Path("e.yaml").write_text("name: data\ndata: {source: {name: histology, size: big}}\n")
    with refused(path="data.source.size", says="integer"):
        load("e.yaml")


def test_options_that_no_encoder_has_are_refused(weights: str) -> None:
    with refused(path="encoder", says="timm has no such model"):
        Encoder(encoder="timm:test_efficientnat")
    with refused(path="encoder", says="timm:NAME"):
        Encoder(encoder="resnet18")
    with pytest.raises(ExperimentError, match=r"takes images of 160 pixels only; found 64"):
        Encoder(encoder="timm:test_vit", size=64).network(2, 24)
    with pytest.raises(ExperimentError, match="name a file as weights, or fill the cache"):
        Encoder(encoder="timm:test_vit").network(2, 24)
    assert model_shorthand("timm:resnet18") == {"name": "timm", "model": "resnet18"}
    assert Encoder(encoder=f"timm:{ENCODER}", weights=weights).parameters(2, 24) == sum(
        each.numel() for each in timm.create_model(ENCODER, num_classes=0).parameters()
    )
