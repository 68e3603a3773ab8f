"""The list of all policies; a program may add its own."""

from collections.abc import Callable

from stellarbyte.errors import UserError, shown
from stellarbyte.kv_cache.expected import Expected
from stellarbyte.kv_cache.heavy import Heavy
from stellarbyte.kv_cache.norm import Norm
from stellarbyte.kv_cache.policy import NEEDS, Policy
from stellarbyte.kv_cache.snap import Snap
from stellarbyte.kv_cache.window import Window

# Name -> a function that makes the policy.
POLICIES: dict[str, Callable[[], Policy]] = {factory.name: factory for factory in (Window, Heavy, Snap, Expected, Norm)}


def register_policy(name: str, factory: Callable[[], Policy]) -> None:
    """Adds a policy, which `--kv-policy NAME` and both caches then take.

    Raises:
        UserError: there is one of this name, or it needs what no cache collects.
    """
    if name in POLICIES:
        raise UserError(f"there is a policy {shown(name)} already: register yours by another name")
    unknown = sorted(factory().needs - NEEDS)
    if unknown:
        raise UserError(f"policy {name} needs {shown(unknown[0])}, which no cache collects: {', '.join(sorted(NEEDS))}")
    POLICIES[name] = factory


def policy(name: str) -> Policy:
    """The policy of a name. Raises UserError: there is none; the error lists those that there are."""
    if name not in POLICIES:
        raise UserError(f"--kv-policy {shown(name)} is unknown: use {', '.join(POLICIES)}")
    return POLICIES[name]()
