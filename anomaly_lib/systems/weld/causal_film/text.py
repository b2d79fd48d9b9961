"""The text term's target: what a frozen CLIP says of "a normal weld", as one vector that is kept beside the run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anomaly_lib.backbones.clip import create_clip
from anomaly_lib.errors import UserError
from anomaly_lib.files import write_atomic
from anomaly_lib.systems.weld.causal_film.options import Args

FILE = "text_vector.pt"


def text_vector(args: Args, folder: Path, say: Callable[[str], object]) -> Tensor | None:
    """The embedding [T] that predictions are drawn to, read from its file or encoded into `folder`; None = no term."""
    if not args.lambda_text:
        return None
    if args.text_vector is not None:
        return load_vector(args.text_vector)
    if args.text_prompt is None:
        say("no --text-prompt and no --text-vector: the text term is off")
        return None
    vector = encode_prompt(args, say)
    write_atomic(folder / FILE, lambda stream: torch.save(vector, stream))
    return vector


def encode_prompt(args: Args, say: Callable[[str], object]) -> Tensor:
    """The embedding [T] of ``text_prompt`` by ``text_backbone``."""
    assert args.text_prompt is not None
    try:
        clip = create_clip(args.text_backbone, weights=args.text_weights, download=args.download)
    except UserError as error:  # four networks: say which
        text = str(error)
        said = text.replace("weights=", "text_weights=")
        raise UserError(said if said != text else f"text_backbone={args.text_backbone}: {text}") from None
    unknown = clip.text.tokenizer.unknown_words(args.text_prompt)
    remark = f" (its word list lacks {', '.join(map(repr, unknown))}: the vector says little)" if unknown else ""
    say(f"text term: {args.text_prompt!r} by {args.text_backbone}, weights {clip.weights_id[:12]}{remark}, in {FILE}")
    return clip.text.encode_text([args.text_prompt])[0]


def load_vector(path: str) -> Tensor:
    """One vector [T] from a tensor file."""
    if not Path(path).is_file():
        raise UserError(f"text_vector={path}: no such file")
    vector = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(vector, Tensor) or vector.ndim != 1:
        raise UserError(f"text_vector={path}: expected one vector, the CLIP embedding of 'a normal weld'")
    return vector
