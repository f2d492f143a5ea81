"""A head on a frozen encoder: what it is trained on, with features that are computed once and without."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded import ENCODER, write_weights

from fedrobust.errors import FederationError
from fedrobust.experiment import Experiment
from fedrobust.federation.clients import ClientHost
from fedrobust.federation.features import block_on, encoder_digest
from fedrobust.federation.layout import Layout

N, S = 80, 12
LABELS = np.arange(N) % 2
IMAGES = np.random.default_rng(0).integers(0, 256, (N, S, S, 3), dtype=np.uint8)
BACKDOOR = {"name": "patch_backdoor", "target": 0, "size": 4}


def host(
    weights: Path,
    attacks: Any = (),
    views: Sequence[np.ndarray] = (),
    model: dict[str, Any] | None = None,
    **local: Any,
) -> ClientHost:
    experiment = Experiment.model_validate(
        {
            "federation": {"clients": 4},
            "learning": {
                "model": {"name": "encoder", "encoder": f"timm:{ENCODER}", "weights": str(weights), "size": 32}
                | (model or {}),
                "local": {"steps": 3, "batch_size": 8, "augment": False} | local,
            },
            "attacks": attacks,
        }
    )
    made = ClientHost(1, "cpu")
    layout = Layout(tuple(np.arange(60).reshape(4, 15)), np.arange(60, N), np.arange(60, N), 2)
    made.setup(experiment, layout, LABELS, IMAGES)
    if views:
        triggered = [key for key, positions, attack in made._questions if attack is not None]
        sets = [made.encode(key, 0, N) for key in triggered]
        made.setup(experiment, layout, LABELS, IMAGES, *views, *sets)
    return made


def trained(made: ClientHost) -> np.ndarray:
    weights = made.initial_weights()
    d = len(weights)
    block, *_ = made.train(1, [0, 1, 2, 3], [], weights, {}, [0, 1, 2, 3], None, [slice(0, d)])
    return np.array(block)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "encoder.pth"
    write_weights(file)
    return file


@pytest.fixture(scope="module")
def table(weights: Path) -> np.ndarray:
    return host(weights).encode(0, 0, N)


@pytest.fixture(scope="module")
def views(weights: Path, table: np.ndarray) -> list[np.ndarray]:
    """Of all turned and flipped patches."""
    made = host(weights)
    return [table, *(made.encode(view, 0, N) for view in range(1, 8))]


def test_shares_of_patches_have_the_features_of_all(weights: Path, table: np.ndarray) -> None:
    made = host(weights)
    assert table.shape == (N, 256) and table.dtype == np.float32
    assert np.array_equal(np.concatenate([made.encode(0, first, first + 32) for first in (0, 32, 64)]), table)


ATTACKS: list[Any] = [
    [],
    [{"name": "label_flip", "count": 2}],
    [BACKDOOR | {"count": 1}],
    [{"name": "artefacts", "count": 2}],
    [{"name": "stain_backdoor", "count": 1, "target": 1}],
    [{"name": "model_replacement", "count": 1, "backdoor": BACKDOOR}],
]


@pytest.mark.parametrize("attacks", ATTACKS, ids=lambda attacks: attacks[0]["name"] if attacks else "nobody")
def test_training_and_evaluation_are_those_on_patches(attacks: Any, weights: Path, table: np.ndarray) -> None:
    """Up to the last digits, whatever attackers do to labels or images."""
    compare(host(weights, attacks), host(weights, attacks, [table]))


@pytest.mark.parametrize("attacks", ATTACKS, ids=lambda attacks: attacks[0]["name"] if attacks else "nobody")
def test_eight_views_are_the_augmentation_of_patches(attacks: Any, weights: Path, views: list[np.ndarray]) -> None:
    """Also for an attacker, whose trigger stays where it is put on the drawn view."""
    compare(host(weights, attacks, augment=True), host(weights, attacks, views, {"views": 8}, augment=True))


def compare(on_patches: ClientHost, on_features: ClientHost) -> None:
    expected, found = trained(on_patches), trained(on_features)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected).max() > 1e-3
    global_weights = on_patches.initial_weights() + expected.mean(axis=0)
    expected_rows, found_rows = (made.evaluate(global_weights, 0, 1) for made in (on_patches, on_features))
    assert set(found_rows) == set(expected_rows)
    for key, rows in expected_rows.items():
        np.testing.assert_allclose(found_rows[key], rows, atol=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_each_step_takes_one_of_the_views_of_a_patch(count: int, weights: Path, views: list[np.ndarray]) -> None:
    """About as often each, for the same seed the same; patches are evaluated as they are."""
    made = host(weights, (), views[:count], {"views": count}, augment=True)

    def drawn(round: int) -> list[int]:
        assert made._features is not None
        arguments: dict[str, Any] = {"batch_size": 8, "steps": 16, "seed": 1, "round": round, "client": 3}
        rows = np.concatenate([batch for batch, _ in made._features.batches(np.arange(N), None, **arguments)])
        found = [[np.array_equal(row, own) for view in views for own in view].index(True) // N for row in rows]
        assert len(found) > N
        return found

    first = drawn(1)
    assert set(first) == set(range(count)) and min(map(first.count, range(count))) > len(first) / count / 2
    assert drawn(1) == first != drawn(2)
    plain, weighted = host(weights, (), views[:1]), made.initial_weights()
    assert np.array_equal(made.evaluate(weighted, 0, 1)["clean"], plain.evaluate(weighted, 0, 1)["clean"])


@pytest.mark.parametrize(("model", "near"), [({"features": "float16"}, 2e-3), ({"precision": "bfloat16"}, 0.05)])
def test_features_in_half_the_bits_are_nearly_the_same(
    model: dict[str, Any], near: float, weights: Path, table: np.ndarray
) -> None:
    """They have a digest of their own, and those of shares are those of all; so are those of a changed patch."""
    made = host(weights, (), (), model)
    rows = made.encode(0, 0, N)
    assert rows.dtype == model.get("features", "float32")
    assert 0 < np.linalg.norm(rows - table) < near * np.linalg.norm(table)
    assert made.encoder()[0] != host(weights).encoder()[0]
    assert np.array_equal(np.concatenate([made.encode(0, first, first + 32) for first in (0, 32, 64)]), rows)
    attacks = [BACKDOOR | {"count": 2}]
    expected, found = (trained(each) for each in (host(weights, attacks), host(weights, attacks, [rows], model)))
    assert 0 < np.linalg.norm(found - expected) < 2 * near * np.linalg.norm(expected)


def test_larger_blocks_on_a_gpu_are_told_apart(weights: Path) -> None:
    """The last bits may depend on them."""
    made = host(weights)
    digests = {
        device: encoder_digest(made._network, torch.device(device), np.dtype("float32")) for device in ("cpu", "cuda")
    }
    assert made.encoder() == (digests["cpu"], 32) and digests["cuda"] != digests["cpu"]
    assert block_on(torch.device("cuda")) == 128


def test_features_that_are_too_large_for_half_the_bits_are_refused(weights: Path) -> None:
    made = host(weights, (), (), {"features": "float16"})
    last = list(made._network.encoder.parameters())[-1]
    before = last.detach().clone()
    try:
        last.data.fill_(1e5)  # the shift of the last normalisation
        with pytest.raises(FederationError, match=r"too large for float16; use learning\.model\.features: float32"):
            made.encode(0, 0, 1)
    finally:
        last.data.copy_(before)


def test_a_patch_is_looked_at_once(weights: Path, table: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a trigger, too; and what is not changed is not looked at again."""
    import fedrobust.federation.features as room

    looked, blocks = list[int](), room.encoded_blocks

    def counting(network: Any, images: np.ndarray, *rest: Any) -> Any:
        looked.append(len(images))
        return blocks(network, images, *rest)

    monkeypatch.setattr(room, "encoded_blocks", counting)
    monkeypatch.setattr(room, "_changed", OrderedDict())
    made = host(weights, [BACKDOOR | {"count": 1}], [table])
    assert looked == [10], "the test patches that get the trigger"
    looked.clear()
    first = trained(made)
    once = len(looked)
    assert 0 < once <= 15, "no more than the attacker has"
    assert np.array_equal(trained(made), first) and len(looked) == once
    made.evaluate(made.initial_weights(), 0, 1)
    assert len(looked) == once
    other = host(weights, [BACKDOOR | {"count": 1}], [table])  # as another run of this process
    looked.clear()
    assert np.array_equal(trained(other), first) and not looked
    plain = host(weights, [{"name": "label_flip", "count": 3}], [table])
    trained(plain)
    plain.evaluate(plain.initial_weights(), 0, 1)
    assert not looked


def test_shares_of_the_evaluation_give_the_bits_of_the_whole(weights: Path, table: np.ndarray) -> None:
    """The layout has so many held-out patches that each of two actors gets some."""
    made = host(weights, [BACKDOOR | {"count": 1}])
    layout = Layout(made._layout.indices, np.arange(640), np.arange(640), 2)
    data = made._experiment, layout, np.repeat(LABELS, 8), np.repeat(IMAGES, 8, axis=0)
    made.setup(*data)
    made.setup(*data, np.repeat(table, 8, axis=0), made.encode("trigger/0", 0, 640))
    whole = made.evaluate(made.initial_weights(), 0, 1)
    shares = [made.evaluate(made.initial_weights(), part, 2) for part in range(2)]
    for key, rows in whole.items():
        assert np.array_equal(np.concatenate([share[key] for share in shares]), rows)
    assert min(len(share["clean"]) for share in shares) > 0


def test_features_of_changed_patches_are_kept_up_to_so_many_bytes(
    weights: Path, table: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack that changes patches anew in every batch, in a run and in the next one with the same draws."""
    import fedrobust.federation.features as room

    attack = [{"name": "artefacts", "count": 2}]

    def encoded_in_the_second_run(most: int) -> int:
        monkeypatch.setattr(room, "_changed", OrderedDict())
        monkeypatch.setattr(room, "KEPT", most)
        trained(host(weights, attack, [table]))
        assert 0 < len(room._changed) <= max(1, most // table[0].nbytes)
        asked = list[int]()
        real = room.encoded
        monkeypatch.setattr(
            room, "encoded", lambda network, images, *more: asked.append(1) or real(network, images, *more)
        )
        trained(host(weights, attack, [table]))
        monkeypatch.setattr(room, "encoded", real)
        return len(asked)

    assert encoded_in_the_second_run(most=1000 * table[0].nbytes) == 0
    assert encoded_in_the_second_run(most=5 * table[0].nbytes) > 0
