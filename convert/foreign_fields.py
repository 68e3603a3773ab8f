"""Passes over or refuses what Transformers 4 and 5 write into any model's config.json beside the architecture."""

from collections.abc import Mapping
from typing import Any

from stellarbyte.errors import UserError, in_full

# None of these changes a weight or what is computed from it, whatever they hold.
_SILENT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _experts_implementation _from_auto _name_or_path
    architectures attn_implementation auto_map custom_pipelines decoder_start_token_id dtype experts_implementation
    finetuning_task for_training gradient_checkpointing id2label is_decoder label2id model_type name_or_path num_labels
    output_attentions output_hidden_states output_router_logits prefix problem_type pruned_from return_dict
    sep_token_id task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers_version
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
    """.split()  # noqa: SIM905 - so many names read better without quotes
)

# Settings of generation. Transformers 4 kept them here; they are in generation_config.json now.
_GENERATION = frozenset(
    """
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """.split()  # noqa: SIM905
)

# Fields that could change the model, and the values with which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "attention_chunk_size": (None,),
    "attention_out_bias": (False, None),
    "chunk_size_feed_forward": (0, None),
    "cross_attention_hidden_size": (None,),
    "final_logit_softcapping": (None,),
    "is_encoder_decoder": (False, None),
    "logit_scale": (1.0, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "use_mrope": (False, None),  # in Qwen2.5's files
}


def architecture(mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `mapping` that describe the architecture, by our names for rope_theta, rope_scaling, pruned_heads.

    Raises:
        UserError: a field would change the model; the sentence has its value.
    """
    fields: dict[str, Any] = {}
    for name, value in mapping.items():
        if name in _SILENT or name in _GENERATION:
            continue
        if name in _NEUTRAL:
            # 1 is not True here, nor 0 False.
            if not any(type(value) in (type(neutral), int) and value == neutral for neutral in _NEUTRAL[name]):
                raise UserError(
                    f"{where}: {name} is not a field of StellarByte, and {in_full(value)} would change the model: save "
                    "the model without it"
                )
            continue
        fields[name] = value
    if fields.get("pruned_heads") == {}:  # Transformers 4 writes this for every model
        fields["pruned_heads"] = None
    _take_layer_types(fields, where)
    return _with_flat_positions(fields, where)


def _take_layer_types(fields: dict[str, Any], where: str) -> None:
    windowed = fields.get("sliding_window") is not None
    use = fields.pop("use_sliding_window", None)
    if use is not None and use is not windowed:
        raise UserError(
            f"{where}: use_sliding_window is not a field of StellarByte, and {in_full(use)} contradicts sliding_window "
            f"{in_full(fields.get('sliding_window'))}: set that to what is meant"
        )
    kinds = fields.pop("layer_types", None)
    expected = "sliding_attention" if windowed else "full_attention"
    if isinstance(kinds, list) and len(kinds) != fields.get("num_hidden_layers", len(kinds)):
        raise UserError(
            f"{where}: layer_types names {len(kinds)} layers, but num_hidden_layers is "
            f"{in_full(fields['num_hidden_layers'])}: take layer_types out"
        )
    if kinds is not None and not (isinstance(kinds, list) and all(kind == expected for kind in kinds)):
        raise UserError(
            f"{where}: layer_types is not a field of StellarByte, and {in_full(kinds)} would change the model, whose "
            f"layers are all {expected}"
        )


def _with_flat_positions(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields with rope_theta and rope_scaling, which Transformers 5 keeps together in rope_parameters."""
    parameters = fields.pop("rope_parameters", None)
    position = fields.get("position_embedding", "xpos")
    if parameters is not None:
        if position != "rope":
            raise UserError(
                f"{where}: rope_parameters is not a field of a model with position_embedding {position}: take it out"
            )
        if not isinstance(parameters, dict):
            raise UserError(f"{where}: rope_parameters is {in_full(parameters)}, expected a mapping")
        parameters = dict(parameters)
        if "rope_theta" in parameters:
            fields = _agreeing(fields, "rope_theta", parameters.pop("rope_theta"), where)
        factor = parameters.pop("partial_rotary_factor", None)
        if factor not in (None, 1.0):
            raise UserError(
                f"{where}: rope_parameters.partial_rotary_factor {factor} would change the model, which has 1"
            )
        fields = _agreeing(fields, "rope_scaling", _scaling(parameters or None, where), where)
    if "rope_scaling" in fields:
        fields["rope_scaling"] = _scaling(fields["rope_scaling"], where)
    return fields


def _agreeing(fields: dict[str, Any], name: str, value: Any, where: str) -> dict[str, Any]:
    before = _scaling(fields[name], where) if name == "rope_scaling" and name in fields else fields.get(name, value)
    if before != value:
        raise UserError(
            f"{where}: {name} is {in_full(before)}, but rope_parameters says {in_full(value)}: keep one of them"
        )
    return fields | {name: value}


def _scaling(scaling: Any, where: str) -> Any:
    """rope_scaling with its type under the name rope_type (Transformers 4: type); None if it scales nothing."""
    if not isinstance(scaling, dict):
        return scaling
    scaling = {name: value for name, value in scaling.items() if value is not None}
    old = scaling.pop("type", None)
    if old is not None and scaling.setdefault("rope_type", old) != old:
        raise UserError(
            f"{where}: rope_scaling has type {old!r} and rope_type {scaling['rope_type']!r}: keep one of them"
        )
    if scaling.get("rope_type") == "default":
        others = {name: value for name, value in scaling.items() if name not in ("rope_type", "rope_theta")}
        if others.pop("factor", 1.0) != 1.0 or others.pop("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(
                f"{where}: rope_scaling {in_full(scaling)} of type default would scale nothing: say which it is"
            )
        return None
    return scaling or None
