"""The package imports where Python has no POSIX modules (Windows), and asks for nothing that only POSIX has."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly_lib.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent / "anomaly_lib"
POSIX = ("fcntl", "resource", "pwd", "grp", "termios")
CODE = """
import importlib, sys
names = sys.stdin.read().split()
importlib.import_module("torch")  # what other libraries do about POSIX is theirs
for name in {posix}:
    sys.modules[name] = None
broken = []
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        broken.append((name, str(error)))
print(broken)
"""


def test_every_module_imports_without_posix() -> None:
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(posix=POSIX)], input="\n".join(names), capture_output=True, text=True,
        timeout=240, cwd=PACKAGE.parent, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


POSIX_ONLY = {"fork", "killpg", "sysconf", "getuid", "geteuid", "mkfifo", "setsid", "symlink", "symlink_to", "statvfs"}
GUARDS = ("os.name", "hasattr(os", "OSError")
FILES = sorted(PACKAGE.rglob("*.py"))


def functions_of(path: Path) -> list[tuple[ast.FunctionDef, str]]:
    text = path.read_text(encoding="utf-8")
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return [(node, ast.get_source_segment(text, node) or "") for node in found]


def test_what_only_posix_has_is_asked_for_behind_a_guard() -> None:
    asked, bare = 0, []
    for path in FILES:
        for function, source in functions_of(path):
            for node in ast.walk(function):
                of_linux = isinstance(node, ast.Constant) and str(node.value).startswith(("/proc/", "/dev/", "/sys/"))
                if of_linux or (isinstance(node, ast.Attribute) and node.attr in POSIX_ONLY):
                    asked += 1
                    if not any(guard in source for guard in GUARDS):
                        bare.append(f"{path.name}: {function.name}, line {node.lineno}")
    assert asked > 5
    assert not bare


def test_text_files_name_their_encoding() -> None:
    """Else Windows reads and writes them in its own."""
    unnamed = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            of_a_path = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            asks = of_a_path and node.func.attr in ("read_text", "write_text")
            if asks and not any(keyword.arg == "encoding" for keyword in node.keywords):
                unnamed.append(f"{path.name}: line {node.lineno}")
    assert not unnamed


def test_names_are_cut_at_both_kinds_of_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_lib import files

    monkeypatch.setattr(files.os, "sep", "\\")
    files.check_name("C:\\" + "\\".join(["part" * 20] * 5))  # one name of 400 letters is refused
    with pytest.raises(UserError, match="longer than any file system"):
        files.check_name("C:\\" + "x" * 400)


HOLD = """
import sys
from pathlib import Path
from anomaly_lib.files import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print(lock is not None, flush=True)
sys.stdin.read()
"""


def test_a_folder_is_one_process_s_until_it_dies(tmp_path: Path) -> None:
    """Whatever its name is, and however the process ends; a lock that only looks at files would stay."""
    from anomaly_lib.files import lock_folder

    folder = tmp_path / "m\u00fcller & s\u00f6hne (2)" / "run"
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PACKAGE.parent
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert lock_folder(folder) is None
        holder.kill()
        holder.wait()
    lock = lock_folder(folder)
    assert lock is not None
    lock.close()


def test_locks_are_those_of_a_library_that_knows_windows() -> None:
    """filelock asks msvcrt there; nothing of ours asks fcntl itself."""
    for path in FILES:
        assert "fcntl" not in path.read_text(encoding="utf-8"), path
