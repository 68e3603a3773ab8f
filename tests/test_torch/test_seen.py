"""What torch sees is told as JSON can hold it."""

import json

from stellarbyte_torch.seen import devices


def test_devices() -> None:
    found = json.loads(json.dumps(devices()))
    assert found["devices"] == [] or found["cuda_usable"] or "mps" in found["devices"][0]["kind"]
    assert found["threads"] >= 1
