"""The committed extract of the reference's golden values; the same check as the program."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import golden_check

PATH = Path(__file__).parent / "golden" / "teran.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(PATH, allow_pickle=False) as file:
        return {k: file[k] for k in file.files}


FAMILIES = {
    "case": ["unshared"],
    "align": ["square_var", "padded_eval_shortregions", "degenerate", "rect"],
    "hinge": ["random", "easy", "ties", "one"],
}


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, ns in FAMILIES.items() for n in ns])
def test_equals_the_reference(golden, family, name, x64):
    assert name in golden_check.names(golden, family)
    meta = json.loads(str(golden["meta/json"]))
    found = golden_check.FAMILIES[family](golden, name, meta, "float64")
    assert found and max(found.values()) <= 1e-9, found


def test_ndcg_equals_the_reference(golden):
    assert golden_check.check_ndcg(golden, "ndcg", {}, "float64")["ndcg"] <= 1e-9


def test_a_wrong_value_is_found(golden, x64):
    broken = dict(golden)
    broken["hinge/random/maxviol=True/margin=0.2/loss"] = (
        golden["hinge/random/maxviol=True/margin=0.2/loss"] + 1e-6
    )
    found = golden_check.check_hinge(broken, "random", {}, "float64")
    assert max(found.values()) > 1e-9
