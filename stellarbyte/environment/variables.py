"""Picks the environment variables that matter to StellarByte, and never shows a secret."""

import re
from collections.abc import Mapping

from stellarbyte.memory.gate.secrets import secret_in

_PREFIXES = (
    "JAX_", "XLA_", "LIBTPU_", "TPU_", "PJRT_", "TF_CPP_",
    "CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_",
    "TORCH", "PYTORCH_", "TRITON_", "HF_", "TRANSFORMERS_", "ACCELERATE_", "TOKENIZERS_", "SAFETENSORS_",
    "OMP_", "MKL_", "OPENBLAS_", "KMP_", "MALLOC_",
    "SLURM_", "OMPI_", "PMI_", "KUBERNETES_", "MEGASCALE_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NPROC",
    "WANDB_", "SWANLAB_", "TRACKIO_", "AWS_", "GOOGLE_", "GCLOUD_", "FSSPEC_",
    "PYTHON", "VIRTUAL_ENV", "CONDA_", "UV_", "PIP_", "LD_", "XDG_CACHE_HOME", "MPL",
    "LANG", "LC_", "NO_COLOR", "TERM", "COLUMNS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
)  # fmt: skip
_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|SESSION|SIGNATURE|PWD", re.IGNORECASE)
_NO_SECRETS = {"TOKENIZERS_PARALLELISM", "PYTHONKEYRING"}
_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_LONGEST = 400

MASKED = "(set, not shown)"


def relevant(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter, sorted by name.

    A value is masked if its name or what it looks like says that it is a secret; the user of a URL is masked too.
    """
    names = sorted(name for name in environment if name.upper().startswith(_PREFIXES))
    return {name: _shown(name, environment[name]) for name in names}


def _shown(name: str, value: str) -> str:
    if value and name not in _NO_SECRETS and _SECRET_NAME.search(name):
        return MASKED
    value = _USER_OF_URL.sub("***", value)
    if secret_in(value) is not None:
        return MASKED
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
