"""Under each switch of architecture, no method moves the logits of held-out text further than plain rounding does."""

from pathlib import Path

import pytest
import torch

from .switch_costs import SWITCHES, WAYS, Text, cost, read_text, train

# No layer's error on the calibration rows is above plain rounding's. Those of several layers may add up by chance.
_MOST = 1.1


@pytest.fixture(scope="module")
def text() -> Text:
    torch.set_num_threads(1)  # the models are too small for more
    return read_text()


@pytest.mark.long
@pytest.mark.parametrize("switch", SWITCHES)
def test_no_method_is_worse_than_plain_rounding(switch: str, text: Text, tmp_path: Path) -> None:
    train(SWITCHES[switch], text, tmp_path / "model")
    costs = {name: cost(tmp_path / "model", text, name, tmp_path / name) for name in WAYS}
    for name, (_, _, plain) in WAYS.items():
        assert costs[name] <= _MOST * costs[plain], (name, costs)
    assert costs["gptq, 4 bits"] < 0.7 * costs["rtn, 4 bits"]
