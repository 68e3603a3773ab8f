"""What `stellarbyte checkpoints` does with its options; heavy libraries are imported once they are needed."""

import argparse
import json

from stellarbyte.errors import UserError
from stellarbyte.interrupt import interruptible
from stellarbyte.progress import progress


def checkpoints(options: argparse.Namespace) -> int:
    """List a run's checkpoints, verify them or delete one; the exit code says whether one is damaged."""
    from stellarbyte_jax.checkpoints.listing import beside_checkpoints, delete_checkpoint, list_checkpoints
    from stellarbyte_jax.checkpoints.listing_text import listing_json, listing_text

    if options.force and options.delete is None:
        raise UserError("--force is for --delete: name the step to delete, or leave it out")
    if options.delete is not None:
        with interruptible():
            delete_checkpoint(options.run_dir, options.delete, force=options.force)
    if options.verify:
        with progress("checkpoints verified") as update:
            listed = list_checkpoints(options.run_dir, verify=True, progress=update)
    else:
        listed = list_checkpoints(options.run_dir)
    beside = beside_checkpoints(options.run_dir)
    if options.json:
        print(json.dumps(listing_json(listed, beside)))
    else:
        print(listing_text(listed, beside, verified=options.verify))
    return 1 if any(each.damage is not None for each in listed) else 0
