"""Structure files and a table of targets as a data set in the published layout, every structure described in words.

    python scripts/crystal/describe_structures.py --structures my_cifs --targets id_prop.csv --property my_property \
        --root_dir dataset

`--targets` lists "file name, value", as ALIGNN's id_prop.csv does; the suffix may be left out, and a line "id,target"
may stand above. Rows that are there already are kept, so the script can be stopped and started at will.
"""

import csv
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError
from anomaly_lib.files import csv_rows

HEADER = ["Id", "Composition", "prop", "Description", "File_Name"]
NAMED = {"id", "jid", "name", "file", "filename", "file_name", "cif", "cif_id", "structure", "material_id"}
"""What a table's first column may be called, in a line above the first row."""


@dataclass
class DescribeArgs(Options):
    """From structure files to a data set with texts."""

    structures: str = arg("", "folder of CIF, POSCAR, extxyz or JARVIS JSON files")
    targets: str = arg("", "CSV of file name (with or without suffix) and value; a header line is left out")
    property: str = arg("my_property", "name of the property: the folder that is written")
    root_dir: str = arg("dataset", "folder of the data set; the files go to <root_dir>/jarvis/<property>/")
    describer: str = arg(
        "template",
        "built-in sentences, or robocrystallographer (an extra; seconds a crystal)",
        choices=["template", "robocrystallographer"],
    )
    workers: int = arg(0, "processes; 0 = this one", at_least=0)


def read_targets(path: Path) -> list[tuple[str, float]]:
    """(file name, value) of every row."""
    found: dict[str, float] = {}
    for line, row in csv_rows(path):
        if line == 1 and row and row[0].strip().lower() in NAMED:
            continue
        try:
            name, value = row[0].strip(), float(row[1])
        except (IndexError, ValueError):
            raise UserError(f"{path}, line {line}: expected a file name and a number, found {row}") from None
        if not name or not math.isfinite(value):
            raise UserError(f"{path}, line {line}: expected a file name and a finite number, found {row}")
        if name in found:
            raise UserError(f"{path}, line {line}: {name} is listed twice; keep one value of it")
        found[name] = value
    if not found:
        raise UserError(f"{path}: lists no structure")
    return list(found.items())


def find_source(folder: Path, name: str) -> Path:
    """The structure file that a row of the targets means; the suffix may be left out, as in JARVIS's own tables."""
    from anomaly_lib.systems.crystal.data.dataset import structure_file

    path = folder / name
    return path if path.is_file() else structure_file(folder, name) or path


def one_row(source: Path, target: float, cif: Path, describer: str) -> list[str]:
    """Write the structure as CIF and give its line of description.csv."""
    from anomaly_lib.systems.crystal.data import text as texts
    from anomaly_lib.systems.crystal.data.structure import read_crystal, write_cif

    crystal = read_crystal(source)
    text = (texts.describe if describer == "template" else texts.describe_with_robocrystallographer)(crystal)
    write_cif(cif, crystal)
    return [cif.stem, texts.reduced_formula(crystal.symbols), f"{target:.6f}", text, cif.name]


def run(args: DescribeArgs) -> None:
    """Describe what is not described yet."""
    from anomaly_lib.systems.crystal.data.pool import worker_pool

    targets = read_targets(Path(args.targets))
    sources = [(find_source(Path(args.structures), name), value) for name, value in targets]
    folder = Path(args.root_dir) / "jarvis" / args.property
    (folder / "cif").mkdir(parents=True, exist_ok=True)
    table = folder / "description.csv"
    done = set()
    if table.is_file():
        with open(table, newline="", encoding="utf-8") as stream:
            done = {row[0] for row in csv.reader(stream) if row}
    ids = {source: source.name if source.suffix == "" else source.stem for source, _ in sources}
    if len(set(ids.values())) < len(sources):
        twice = next(one for one, count in Counter(ids[source] for source, _ in sources).items() if count > 1)
        raise UserError(f"{args.targets}: two rows mean the structure {twice}; keep one of them")
    todo = [(source, value) for source, value in sources if ids[source] not in done]
    work = [(source, value, folder / "cif" / f"{ids[source]}.cif", args.describer) for source, value in todo]
    with open(table, "a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if not done:
            writer.writerow(HEADER)
        if args.workers:
            with worker_pool(args.workers) as pool:
                for row in pool.map(one_row, *zip(*work, strict=True)) if work else ():
                    writer.writerow(row)
                    stream.flush()
        else:
            for item in work:
                writer.writerow(one_row(*item))
                stream.flush()
    print(f"{len(work)} structures described ({len(sources) - len(work)} were already): {table}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(DescribeArgs, run, argv, prog="describe_structures.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
