"""Convert any readable weight file to one safetensors file, which loads memory-mapped (no extra memory, no waiting).

python scripts/convert_weights.py ViT-L-14-336px.pt                    # -> ViT-L-14-336px.safetensors
python scripts/convert_weights.py hub/model --dtype bf16 -o small.safetensors
python scripts/convert_weights.py lightning.ckpt --keep visual.        # one tower only
"""

import argparse
import sys
from pathlib import Path

import torch

from anomaly_lib.backbones.weights import file_sha256, read_state_dict
from anomaly_lib.errors import UserError

DTYPES = {"same": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def convert(source: Path, output: Path, *, dtype: torch.dtype | None = None, keep: str = "") -> Path:
    """Write the tensors of ``source`` whose key starts with ``keep`` to ``output``, replacing an old file whole."""
    from safetensors.torch import save_file

    found = {key: value for key, value in read_state_dict(source).items() if key.startswith(keep)}
    if not found:
        raise UserError(f"--keep {keep}: no key of {source} starts with it")
    if output.resolve() == source.resolve():
        raise UserError(f"{output}: would overwrite its source; give another --output")
    cast = {
        key: (value.to(dtype) if dtype is not None and value.is_floating_point() else value).contiguous().clone()
        for key, value in found.items()
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    save_file(cast, part, metadata={"format": "pt", "source_sha256": file_sha256(source)})
    part.replace(output)
    return output


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("source", type=Path, help="weight file or Hugging Face folder")
    flags.add_argument("-o", "--output", type=Path, help="default: beside the source, ending in .safetensors")
    flags.add_argument(
        "--dtype", choices=sorted(DTYPES), default="same", help="number format of the copy (default: same)"
    )
    flags.add_argument("--keep", default="", help="only keys that start with this")
    args = flags.parse_args(argv)
    try:
        output = args.output or args.source.with_suffix(".safetensors")
        convert(args.source, output, dtype=DTYPES[args.dtype], keep=args.keep)
    except UserError as error:
        print(f"convert_weights: {error}", file=sys.stderr)
        return 2
    print(f"{output}  {output.stat().st_size / 2**20:.1f} MiB  sha256 {file_sha256(output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
