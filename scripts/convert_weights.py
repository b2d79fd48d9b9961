"""Convert any readable weight file to one safetensors file, which loads memory-mapped (no extra memory, no waiting).

python scripts/convert_weights.py ViT-L-14-336px.pt                    # -> ViT-L-14-336px.safetensors
python scripts/convert_weights.py hub/model -o hub/model/model.safetensors
python scripts/convert_weights.py ViT-L-14-336px.pt --dtype same -o small.safetensors

Networks compute in float32, so only a float32 file can be mapped as it is: half precision is written widened, unless
--dtype says otherwise (half the disk, but loading then needs memory for the widened copy).
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from anomaly_lib.backbones.weights import QUICK_GELU, file_sha256, read_state_dict, uses_quick_gelu
from anomaly_lib.errors import UserError

DTYPES = {"same": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def convert(source: Path, output: Path, *, dtype: torch.dtype | None = torch.float32) -> Path:
    """Write the tensors of ``source`` to ``output``, floating ones as ``dtype``, replacing an old file whole."""
    if output.resolve() == source.resolve():
        raise UserError(f"{output}: would overwrite its source; give another --output")
    found = read_state_dict(source)
    metadata = {"format": "pt", "source_sha256": file_sha256(source)}
    if uses_quick_gelu(source):
        metadata[QUICK_GELU] = "1"  # an archive's activation is part of its code, which is not copied
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    write_safetensors(part, found, dtype, metadata)
    part.replace(output)
    return output


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    """The format by hand (header length, JSON header, plain numbers): the library's writer wants all copies at once."""
    kinds = {k: dtype if dtype is not None and v.is_floating_point() else v.dtype for k, v in tensors.items()}
    order = sorted(tensors, key=lambda key: (-kinds[key].itemsize, key))  # wide numbers first: everything is aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for key in order:
        start, end = end, end + tensors[key].numel() * kinds[key].itemsize
        shape = list(tensors[key].shape)
        header[key] = {"dtype": CODES[kinds[key]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:  # one tensor at a time is in memory
            file.write(tensors[key].to(kinds[key]).contiguous().flatten().view(torch.uint8).numpy())


def main(argv: list[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("source", type=Path, help="weight file or Hugging Face folder")
    flags.add_argument("-o", "--output", type=Path, help="default: beside the source, ending in .safetensors")
    flags.add_argument(
        "--dtype", choices=sorted(DTYPES), default="fp32", help="number format of the copy (default: fp32)"
    )
    args = flags.parse_args(argv)
    try:
        output = args.output or args.source.with_suffix(".safetensors")
        convert(args.source, output, dtype=DTYPES[args.dtype])
    except UserError as error:
        print(f"convert_weights: {error}", file=sys.stderr)
        return 2
    print(f"{output}  {output.stat().st_size / 2**20:.1f} MiB  sha256 {file_sha256(output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
