"""Chat templates by name: StellarByte's own, or a file's."""

from pathlib import Path

from stellarbyte.errors import UserError

# What `stellarbyte tokenizer train` writes into every tokenizer's folder: here for tokenizers that have no template.
STELLARBYTE_TEMPLATE = """\
{%- for message in messages -%}
    {{- bos_token + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- bos_token + 'assistant\\n' -}}{%- endif -%}
"""


def read_template(name: str | None, field: str) -> str | None:
    """The Jinja in a file, or StellarByte's for the name stellarbyte; None, which means the tokenizer's own, stays.

    Raises:
        UserError: the file cannot be read; `field` is how the error calls it.
    """
    if name is None or name == "stellarbyte":
        return name and STELLARBYTE_TEMPLATE
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"{field} {name} cannot be read ({reason}): name a Jinja file, or stellarbyte") from None
