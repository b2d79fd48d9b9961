"""Convert any readable weight file to one safetensors file, which loads memory-mapped (no extra memory, no waiting).

python scripts/convert_weights.py ViT-L-14-336px.pt                    # -> ViT-L-14-336px.safetensors
python scripts/convert_weights.py hub/model -o hub/model/model.safetensors
python scripts/convert_weights.py ViT-L-14-336px.pt --dtype same -o small.safetensors

Networks compute in float32, so only a float32 file can be mapped as it is: half precision is written widened, unless
--dtype says otherwise (half the disk, but loading then needs memory for the widened copy).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from anomaly_lib.bare_words import name_bare_words
from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError

if TYPE_CHECKING:  # torch is loaded where there is work: --help and mistakes come at once
    from torch import Tensor

KEPT = "same"
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass
class Args(Options):
    """A weight file as one safetensors file."""

    source: Optional[str] = arg(None, "weight file or Hugging Face folder; needs no flag", type=str)
    output: Optional[str] = arg(
        None, "file to write; None = beside the source, ending in .safetensors", type=str, aliases=["-o"]
    )
    dtype: str = arg("fp32", "number format of the copy", choices=[KEPT, *DTYPES])


def convert(source: Path, output: Path, *, dtype: str = "fp32") -> Path:
    """Write the tensors of `source` to `output`, floating ones as `dtype`, replacing an old file whole."""
    from anomaly_lib.backbones.weights import QUICK_GELU, file_sha256, read_state_dict, uses_quick_gelu

    if output.resolve() == source.resolve():
        raise UserError(f"output={output}: would overwrite its source")
    found = read_state_dict(source)
    metadata = {"format": "pt", "source_sha256": file_sha256(source)}
    if uses_quick_gelu(source):
        metadata[QUICK_GELU] = "1"  # an archive's activation is part of its code, which is not copied
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    write_safetensors(part, found, dtype, metadata)
    part.replace(output)
    return output


def write_safetensors(path: Path, tensors: "Mapping[str, Tensor]", dtype: str, metadata: Mapping[str, str]) -> None:
    """The format by hand (header length, JSON header, plain numbers): the library's writer wants all copies at once."""
    import torch

    floats = None if dtype == KEPT else getattr(torch, DTYPES[dtype])
    kinds = {k: floats if floats is not None and v.is_floating_point() else v.dtype for k, v in tensors.items()}
    order = sorted(tensors, key=lambda key: (-kinds[key].itemsize, key))  # wide numbers first: everything is aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for key in order:
        start, end = end, end + tensors[key].numel() * kinds[key].itemsize
        code = CODES[str(kinds[key]).removeprefix("torch.")]
        header[key] = {"dtype": code, "shape": list(tensors[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:  # one tensor at a time is in memory
            file.write(tensors[key].to(kinds[key]).contiguous().flatten().view(torch.uint8).numpy())


def body(args: Args) -> None:
    from anomaly_lib.backbones.weights import file_sha256

    if args.source is None:
        raise UserError("give source=: the weight file to convert")
    output = Path(args.output) if args.output else Path(args.source).with_suffix(".safetensors")
    convert(Path(args.source), output, dtype=args.dtype)
    print(f"{output}  {output.stat().st_size / 2**20:.1f} MiB  sha256 {file_sha256(output)}")


def main(argv: Sequence[str] | None = None) -> int:
    words = name_bare_words(sys.argv[1:] if argv is None else argv, Args, ["source"])
    return command(Args, body, words, prog="convert_weights.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
