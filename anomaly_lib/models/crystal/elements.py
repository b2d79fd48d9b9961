"""Element symbols and the 92 binary CGCNN atom features, kept as one slot number per element and property.

The table is the one published with CGCNN (``atom_init.json``, MIT licence, Tian Xie 2018). Its 92 columns are nine
one-hot blocks, so one character per element says everything: the slot inside the block in base 36, "." for none.
"""

import numpy as np

from anomaly_lib.errors import UserError

_SYMBOL_ROWS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn",
    "Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce",
    "Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At",
    "Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm",
)
SYMBOLS = tuple(symbol for row in _SYMBOL_ROWS for symbol in row.split())
MAX_ATOMIC_NUMBER = len(SYMBOLS)  # 100
NUM_ATOM_FEATURES = 92

_NUMBER_OF = {symbol: number for number, symbol in enumerate(SYMBOLS, start=1)}

# property: (first column, number of bins, one slot character for Z = 1..100)
_BLOCKS = {
    "group": (
        0, 19,
        "1i12defghi12defghi123456789abcdefghi123456789abcdefghi12000000000000003456789abcdefghi12000000000000",
    ),
    "period": (
        19, 7,
        "0011111111222222223333333333333333334444444444444444445555555555555555555555555555555566666666666666",
    ),
    "electronegativity": (
        26, 10,
        "4.1345789.1233457.01223333343334457.012234445443344466011111.1.1.2222.122334445333344.01122322......",
    ),
    "covalent radius": (
        36, 10,
        "0043222111554433337654444433344444348765554444445554449766666666666666655444444455555587766666666666",
    ),
    "valence electrons": (
        46, 12,
        "0101234567012345670123456789ab234567012345678bab234567011111111111111123456789ab23456701111111111111",
    ),
    "ionisation energy": (
        58, 10,
        "6914456678132355670223333333342344560222333334342344550122122222222222133334444523344501122222222222",
    ),
    "electron affinity": (
        68, 10,
        "5.5046269.5.56579.544455.4566.56579.54455556656.466794545557..5.65..64444546677.55578.545...........",
    ),
    "block": (
        78, 4,
        "0000111111001111110022222222221111110022222222221111110033333333333333222222222211111100333333333333",
    ),
    "atomic volume": (
        82, 10,
        "463000444454234456864321111112333457975432222223445568975555.56555554643322222244555...855435.55....",
    ),
}  # fmt: skip


def atomic_number(symbol: str) -> int:
    """Atomic number of an element symbol; deuterium and tritium count as hydrogen."""
    symbol = {"D": "H", "T": "H"}.get(symbol, symbol)
    if symbol not in _NUMBER_OF:
        raise UserError(f"unknown element symbol {symbol!r} (known: H to Fm)")
    return _NUMBER_OF[symbol]


def clip_atomic_numbers(numbers: np.ndarray) -> np.ndarray:
    """Elements above the table share the row of Z = 100, as in the original."""
    if numbers.size and numbers.min() < 1:
        raise UserError(f"atomic numbers start at 1, got {int(numbers.min())}")
    return np.minimum(numbers, MAX_ATOMIC_NUMBER)


def atom_feature_table() -> np.ndarray:
    """The binary features of every element: row Z - 1, float32 [100, 92]."""
    table = np.zeros((MAX_ATOMIC_NUMBER, NUM_ATOM_FEATURES), dtype=np.float32)
    for first, bins, slots in _BLOCKS.values():
        for row, character in enumerate(slots):
            if character != ".":
                slot = int(character, 36)
                assert slot < bins
                table[row, first + slot] = 1.0
    return table
