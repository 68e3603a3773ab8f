"""Loads the model that fine-tuning starts from, out of a folder or from the Hub, whole or quantised."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stellarbyte.errors import UserError
from stellarbyte.reading import expanded
from stellarbyte_torch.compressed_folder import is_compressed
from stellarbyte_torch.decoder import check_decoder
from stellarbyte_torch.model_folder import MISTAKES, first_line, load_model, load_tokenizer, read_config
from stellarbyte_torch.torchao_settings import torchao_settings


def load_base_config(name: str, *, local_files_only: bool = False) -> Any:
    """The config of the causal language model in a folder or with a Hub id; `local_files_only` downloads nothing.

    A quantised folder's is that of the model of floats which `load_base` makes of it.

    Raises:
        UserError: there is no such folder or model, or Transformers cannot read it.
    """
    folder = _folder(name)
    if folder is not None and not (folder / "config.json").is_file():
        missing = "holds no config.json" if folder.is_dir() else f"is not a folder, relative to {Path.cwd()}"
        raise UserError(f"model {name} {missing}: give a model's Hugging Face folder")
    # It bounds the file's size and depth, which Transformers does not.
    compressed = folder is not None and is_compressed(read_config(folder))
    try:
        config = AutoConfig.from_pretrained(name if folder is None else folder, local_files_only=local_files_only)
        if compressed:
            del config.quantization_config
        return config
    except MISTAKES as error:
        elsewhere = "nor downloaded from the Hub yet" if local_files_only else "nor a model that the Hub gives"
        where = f"is neither a folder here {elsewhere}" if folder is None else "cannot be loaded"
        raise UserError(f"model {name} {where}: {first_line(error)}") from error


def load_base_tokenizer(name: str, *, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or with a Hub id; `local_files_only` downloads nothing.

    Raises:
        UserError: there is none or it is damaged.
    """
    folder = _folder(name)
    if folder is not None:
        return load_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
    except Exception as error:  # tokenizers raises the bare class for a damaged tokenizer.json
        raise UserError(f"{name} has no tokenizer that can be loaded: {first_line(error)}") from error


def load_base(name: str, dtype: str, quantization: str) -> PreTrainedModel:
    """The model in a dtype ("auto" is the saved one); its linear layers are quantised unless quantization is "none".

    Raises:
        UserError: weights are missing, left over or damaged; or the package or GPU that quantising needs is missing.
    """
    folder = _folder(name)
    if folder is not None and quantization == "none":
        # An adapter remembers its base's path; an absolute one is right from any working directory.
        return load_model(folder.resolve(), "cpu", dtype, dequantised=True)
    if folder is not None and is_compressed(read_config(folder)):
        raise UserError(
            f"quantization {quantization} is for a base of floats, and {name} is quantised already: set it to none"
        )
    options = {} if quantization == "none" else {"quantization_config": quantizer(quantization)}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name if folder is None else folder.resolve(), dtype=dtype, trust_remote_code=False, **options
        )
    except MISTAKES as error:
        raise UserError(f"model {name} cannot be loaded: {first_line(error)}") from error
    check_decoder(model, f"model {name}")
    return model


def _folder(name: str) -> Path | None:
    """The folder that `name` means, existing or not; None if it is a Hub id: owner/name, and no such folder."""
    folder = expanded(name)
    is_path = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    return folder if is_path or folder.is_dir() else None


def quantizer(quantization: str) -> Any:
    """Transformers' settings for int8 or nf4. Raises UserError if the package or GPU for it is missing."""
    if quantization == "int8":
        if find_spec("torchao") is None:
            raise UserError("quantization int8 needs torchao: pip install torchao, or set quantization to none")
        return torchao_settings("int8")
    if not torch.cuda.is_available():
        raise UserError("quantization nf4 needs a CUDA GPU, and there is none here: set quantization to int8 or none")
    if find_spec("bitsandbytes") is None:
        raise UserError("quantization nf4 needs bitsandbytes: pip install bitsandbytes, or set it to int8 or none")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
