"""What `stellarbyte convert verify` does with its options."""

import argparse
from contextlib import ExitStack, suppress


def run(options: argparse.Namespace) -> int:
    """Compares, prints the certificate, and returns 0 after PASS and 1 after FAIL."""
    from convert import certificate
    from convert.bucket_folders import read_here
    from convert.freed_memory import give_back_large
    from convert.verifying import quantised
    from convert.verifying.report import summary, to_json
    from stellarbyte.progress import progress
    from stellarbyte_torch.library_words import hear_libraries

    with suppress(ImportError):  # certificate says what is missing
        hear_libraries("stellarbyte")
    give_back_large()
    prompts = certificate.read_prompts(options.prompts) if options.prompts else None
    with ExitStack() as stack:
        folder, left = stack.enter_context(read_here(options.hf_dir)), options.run_dir
        if certificate.is_model_folder(left):
            left = stack.enter_context(read_here(left))
        if quantised.is_quantised_folder(folder):
            result = quantised.verify(left, folder, prompts=prompts, called=str(options.hf_dir))
        else:
            with progress("using weights", "B") as update:
                result = certificate.verify(
                    left, folder, step=options.step, prompts=prompts, progress=update, called=str(options.hf_dir)
                )
        if folder != options.hf_dir:
            for name in (certificate.CERTIFICATE, certificate.PICTURE):
                if (folder / name).is_file():  # a quantised folder has a picture of its own
                    (options.hf_dir / name).upload(folder / name)
    print(to_json(result) if options.json else summary(result))
    return 0 if result["verdict"] == "PASS" else 1
