"""Parameters by part and layer: tied ones once, buffers never, quantised ones as many as they stand for."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from stellarbyte.report.find import find_subject
from stellarbyte.report.parameters import count_parameters
from test_stellarbyte.test_report.folders import LLAMA, folder, llama

HEAD = 96 * 32
LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32


def total(path):
    return count_parameters(find_subject(path))


def test_by_part_and_layer(tmp_path):
    found = total(folder(tmp_path / "m", LLAMA, llama()))
    assert found.parts == {
        **{"embedding": HEAD, "attention_q": 2048, "attention_k": 1024, "attention_v": 1024, "attention_o": 2048},
        **{"feed_forward": 2 * 3 * 48 * 32, "norms": 5 * 32, "head": HEAD},
    }
    assert [layer.total for layer in found.layers] == [LAYER, LAYER]
    assert found.total == found.active == found.trained == 2 * LAYER + 2 * HEAD + 32
    assert found.tied == 0


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_head_counts_once_even_if_it_is_stored(tmp_path, stored):
    fields = LLAMA | {"tie_word_embeddings": True}
    found = total(folder(tmp_path / "m", fields, llama(tied=not stored)))
    assert found.total == 2 * LAYER + HEAD + 32
    assert found.tied == HEAD


def test_a_matrix_of_another_shape_is_no_tied_head(tmp_path):
    fields = LLAMA | {"tie_word_embeddings": True}
    found = total(folder(tmp_path / "m", fields, llama(tied=True) | {"pooler.output.weight": ("BF16", (32, 32))}))
    assert found.total == 2 * LAYER + HEAD + 32 + 32 * 32


def test_buffers_do_not_count(tmp_path):
    tensors = llama() | {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (4,))}
    subject = find_subject(folder(tmp_path / "m", LLAMA, tensors))
    assert count_parameters(subject).total == 2 * LAYER + 2 * HEAD + 32
    assert subject.buffers == 16


def test_several_files_are_one_model(tmp_path):
    one, three = folder(tmp_path / "1", LLAMA, llama()), folder(tmp_path / "3", LLAMA, llama(), files=3)
    assert total(one) == total(three)


@pytest.mark.parametrize("fused", [False, True])
def test_experts_at_work(tmp_path, fused):
    """Four experts, of which two work on a token."""
    tensors = {name: value for name, value in llama().items() if "mlp" not in name}
    for layer in range(2):
        prefix = f"model.layers.{layer}.block_sparse_moe."
        tensors[f"{prefix}gate.weight"] = ("BF16", (4, 32))
        if fused:
            tensors[f"{prefix}experts.gate_up_proj"] = ("BF16", (4, 96, 32))
            tensors[f"{prefix}experts.down_proj"] = ("BF16", (4, 32, 48))
        else:
            for expert in range(4):
                for name, shape in (("w1", (48, 32)), ("w2", (32, 48)), ("w3", (48, 32))):
                    tensors[f"{prefix}experts.{expert}.{name}.weight"] = ("BF16", shape)
    fields = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    found = total(folder(tmp_path / "m", fields, tensors))
    assert found.parts["experts"] == 2 * 4 * 3 * 48 * 32
    assert found.total - found.active == 2 * 2 * 3 * 48 * 32


def test_codes_count_as_the_weights_that_they_stand_for(tmp_path):
    """GPTQ's, AWQ's and float8 codes, each of one matrix of 32 x 32."""
    name = "model.layers.0.self_attn.q_proj"
    plain = {key: value for key, value in llama().items() if not key.startswith(name)}
    packings = {
        "gptq": {
            **{"qweight": ("I32", (4, 32)), "scales": ("F16", (1, 32)), "qzeros": ("I32", (1, 4))},
            "g_idx": ("I32", (32,)),
        },
        "awq": {"qweight": ("I32", (32, 4)), "scales": ("F16", (1, 32)), "qzeros": ("I32", (1, 4))},
        "fp8": {"weight": ("F8_E4M3", (32, 32)), "weight_scale_inv": ("F32", (1, 1))},
    }
    for method, parts in packings.items():
        fields = LLAMA | {"quantization_config": {"quant_method": method, "bits": 4}}
        tensors = plain | {f"{name}.{part}": value for part, value in parts.items()}
        subject = find_subject(folder(tmp_path / method, fields, tensors))
        assert count_parameters(subject).total == 2 * LAYER + 2 * HEAD + 32, method
        stored = subject.tensors[f"{name}.weight"]
        assert stored.shape == (32, 32)
        assert stored.dtype == ("F8_E4M3" if method == "fp8" else "I4")
        sizes = {"I32": 4, "F16": 2, "F32": 4, "F8_E4M3": 1}
        assert stored.nbytes == sum(sizes[dtype] * math.prod(shape) for dtype, shape in parts.values()), method


def test_a_config_alone_counts_as_its_folder(tmp_path):
    """Of Qwen2, whose class has biases of three of four projections."""
    fields = LLAMA | {"model_type": "qwen2"}
    tensors = llama(dtype="F32")
    for layer in range(2):
        for name, size in (("q", 32), ("k", 16), ("v", 16)):
            tensors[f"model.layers.{layer}.self_attn.{name}_proj.bias"] = ("F32", (size,))
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert total(tmp_path / "config.json") == total(folder(tmp_path / "m", fields, tensors))


SEVENTY = {
    **{"model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672},
    **{"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    **{"max_position_embeddings": 8192, "rope_theta": 500000.0},
}


def test_seventy_billion_parameters_by_headers_alone(tmp_path):
    """Llama 3's layout in 30 files, without torch and JAX, in the memory that Python takes with numpy."""
    path = folder(tmp_path / "m", SEVENTY, llama(SEVENTY), files=30)
    program = """
import sys
from pathlib import Path
from stellarbyte.report.find import find_subject
from stellarbyte.report.parameters import count_parameters
from stellarbyte.report.structure import structure_of
subject = find_subject(Path(sys.argv[1]))
assert not {"torch", "jax", "transformers"} & set(sys.modules)
structure = structure_of(subject)
assert [len(group.layers) for group in structure.groups] == [80]
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(count_parameters(subject).total, peak)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell a process's peak memory")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, kilobytes = map(int, done.stdout.split())
    assert count == 70_553_706_496  # what Hugging Face tells of Meta-Llama-3-70B
    assert kilobytes < 100_000
