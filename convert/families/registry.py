"""The list of all families."""

from convert.families import llama, mistral, mixtral, qwen2, qwen3, qwen3_moe
from convert.families.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY for module in (llama, mistral, qwen2, qwen3, mixtral, qwen3_moe)
}
