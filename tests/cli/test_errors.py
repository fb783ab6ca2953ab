"""How commands end: one line for a typed error, however deep; a bug keeps its traceback."""

import pytest
import typer

from cli.errors import error_console, errors_told, typed
from core.errors import BatonError, PeerLost, WrongState

LOST, WRONG, BUG = PeerLost("[lost]"), WrongState("wrong"), ValueError("bug")
PIPE = BrokenPipeError(32, "Broken pipe")

TOLD = [
    # id, raised, told
    ("an error", LOST, LOST),
    ("in a group", ExceptionGroup("", [LOST]), LOST),
    ("deep", ExceptionGroup("", [ExceptionGroup("", [LOST])]), LOST),
    ("the first of several", ExceptionGroup("", [WRONG, LOST]), WRONG),
]
RAISED = [
    # id, raised, raised again
    ("a reader that left", ExceptionGroup("", [PIPE]), BrokenPipeError),
    ("a bug, deep", ExceptionGroup("", [ExceptionGroup("", [BUG])]), ValueError),
    ("a bug among errors", ExceptionGroup("", [LOST, BUG]), ValueError),
    ("two bugs", ExceptionGroup("", [BUG, PIPE]), ExceptionGroup),
]


@pytest.mark.parametrize(("error", "want"), [c[1:] for c in TOLD], ids=[c[0] for c in TOLD])
def test_typed_errors_are_a_line(
    error: BatonError | ExceptionGroup[Exception],
    want: BatonError,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert typed(error) is want
    with pytest.raises(typer.Exit) as caught, errors_told(error_console()):
        raise error
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == f"{want.reason}: {want}\n"


@pytest.mark.parametrize(("error", "want"), [c[1:] for c in RAISED], ids=[c[0] for c in RAISED])
def test_anything_else_is_raised(
    error: ExceptionGroup[Exception], want: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(want), errors_told(error_console()):
        raise error
    assert capsys.readouterr().err == ""


def test_a_missing_package_is_named() -> None:
    with pytest.raises(typer.Exit) as caught, errors_told(error_console()):
        raise ModuleNotFoundError("no module", name="grpc")
    assert caught.value.exit_code == 4
