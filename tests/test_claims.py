"""What a hospital claims to have counts as far as the cap allows, and the attack says who claims more."""

from __future__ import annotations

import pytest
from tiny import run

from fedrobust.federation.pool import Pool

pytestmark = pytest.mark.usefixtures("in_place")


@pytest.mark.slow
@pytest.mark.parametrize(("cap", "most"), [("2", 0.3), ("null", 0.99), ("auto", 1 / 3)])
def test_an_inflated_claim_weighs_what_the_cap_allows(cap: str, most: float, pool: Pool) -> None:
    found = run(
        "attacks=[{name: label_flip, count: 1, chosen: smallest, claim: 1e6}]",
        f"aggregation={{rule: mean, weighting: samples, cap: {cap}, f: 1}}",
        "data.partition={name: dirichlet, alpha: 10.0, ratio: 4, minimum: 1}",
        "federation.rounds=1",
        f"name=claims-{cap}",
        pool=pool,
    )
    weights = {int(client): weight for client, weight in found.rounds[0]["weights"].items()}
    largest = max(weights.values())
    assert weights[7] == largest and largest == pytest.approx(most, abs=0.12)
    assert cap != "auto" or largest <= 1 / 3 + 1e-9
    assert weights[0] > 2 * weights[6]
