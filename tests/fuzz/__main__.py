"""python -m tests.fuzz: how many cases of each kind there are, and what must become of them."""

from collections import Counter

from tests.fuzz.kinds import long_cases, quick_cases, reader_cases


def main() -> None:
    cases = [*reader_cases(), *quick_cases(), *long_cases()]
    counts = Counter((case.kind, case.expect) for case in cases)
    columns = ("accept", "refuse", "either")
    print(f"{'kind':>14} {' '.join(f'{name:>7}' for name in (*columns, 'all'))}")
    for kind in dict.fromkeys(case.kind for case in cases):
        row = [counts[kind, name] for name in columns]
        print(f"{kind:>14} {' '.join(f'{number:>7}' for number in (*row, sum(row)))}")
    row = [sum(case.expect == name for case in cases) for name in columns]
    print(f"{'all':>14} {' '.join(f'{number:>7}' for number in (*row, len(cases)))}")


if __name__ == "__main__":
    main()
