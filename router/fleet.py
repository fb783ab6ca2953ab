"""The columns that placement decides on, kept as the instances report: a row per instance."""

from collections.abc import Mapping

from core.ids import Fingerprint, InstanceId
from core.load import Load
from core.member import Member
from policy.correction import DRIFT_SHARE, Scale, drifted
from policy.table import ROLE_CODES, Floats, Phase, Table, empty_table

FIRST_ROWS = 16


class Scales:
    """One phase's corrections; writes a column."""

    def __init__(self) -> None:
        self._scales: dict[int, Scale] = {}
        self._num_since_drift = 0
        self.has_seen = False
        """Anything at all, of whatever instance."""

    def join(self, row: int, column: Floats) -> None:
        """As its peers, until it is seen itself."""
        self._scales[row] = Scale()
        self._drift(column, 0.0)

    def leave(self, row: int) -> None:
        """Nobody's row from now on."""
        del self._scales[row]

    def observed(self, row: int, predicted_s: float, observed_s: float, column: Floats) -> None:
        """What something took, and what the latency model alone would say."""
        before = self._scales[row]
        scale = self._scales[row] = before.after(predicted_s, observed_s)
        column[row], self.has_seen = scale.value, True
        self._num_since_drift += 1
        if not before.num_seen:
            self._drift(column, 0.0)
        elif self._num_since_drift >= len(self._scales):
            self._drift(column, DRIFT_SHARE)

    def _drift(self, column: Floats, share: float) -> None:
        if share:
            self._num_since_drift = 0
        self._scales = dict(drifted(self._scales, share))
        for row, scale in self._scales.items():
            column[row] = scale.value


class Fleet:
    """Owns the columns. Rows are taken and given back; a row that nobody has is not alive."""

    def __init__(self) -> None:
        self._all = empty_table(FIRST_ROWS)
        self._names: list[InstanceId | None] = []
        self._rows: dict[InstanceId, int] = {}
        self._codes: dict[str, dict[str, int]] = {"model": {}, "fingerprint": {}, "host": {}}
        self._prefill, self._decode = Scales(), Scales()
        self.table = self._all_used()
        """Up to the last row in use. A view: what is reported shows in it."""

    @property
    def rows(self) -> Mapping[InstanceId, int]:
        """Of all instances."""
        return self._rows

    def name(self, row: int) -> InstanceId:
        """Whose row it is."""
        name = self._names[row]
        assert name is not None, "placement picks rows that somebody has"
        return name

    def code(self, column: str, text: str) -> int:
        """The number of a model, fingerprint or host; -1 when no instance ever had it."""
        return self._codes[column].get(text, -1)

    def join(self, member: Member) -> int:
        """A row for a new instance, or for the next incarnation of one."""
        assert member.instance_id not in self._rows, "who joins again has left before"
        number = next((i for i, n in enumerate(self._names) if n is None), len(self._names))
        if number == len(self._names):
            self._names.append(None)
            if number == len(self._all.role):
                self._grow()
        self._names[number] = member.instance_id
        self._rows[member.instance_id] = number
        self.table = self._all_used()
        self._prefill.join(number, self.table.prefill_scale)
        self._decode.join(number, self.table.decode_scale)
        self.describe(number, member)
        self.report(number, Load(num_free_blocks=member.num_blocks))
        return number

    def leave(self, number: int) -> None:
        """Nobody's row from now on."""
        name = self.name(number)
        self._names[number] = None
        del self._rows[name]
        self._prefill.leave(number)
        self._decode.leave(number)
        for column in self._all:
            column[number] = 0

    def describe(self, number: int, member: Member) -> None:
        """What does not change from report to report."""
        table, role = self._all, ROLE_CODES[member.role]
        if table.role[number] != role:
            # What it helped with may be its own work now, and its own what it would help with.
            table.helps[number] = False
        table.role[number] = role
        table.model[number] = self._code("model", member.model)
        table.fingerprint[number] = self._code("fingerprint", member.fingerprint)
        table.host[number] = self._code("host", member.host_id)
        table.num_blocks[number] = member.num_blocks
        table.block_size[number] = member.block_size

    def report(self, number: int, load: Load) -> None:
        """How busy it is."""
        table = self._all
        table.draining[number] = load.draining
        table.num_prefilling[number] = load.num_prefilling
        table.num_pending_prompt_tokens[number] = load.num_pending_prompt_tokens
        table.num_incoming[number] = load.num_incoming
        table.num_decoding[number] = load.num_decoding
        table.num_context_tokens[number] = load.num_context_tokens
        table.num_free_blocks[number] = load.num_free_blocks

    def turn(self, number: int, *, alive: bool) -> None:
        """Whether it can be used."""
        self._all.alive[number] = alive

    def help(self, number: int, *, helps: bool) -> None:
        """Whether it takes work of the other phase, too."""
        self._all.helps[number] = helps

    def observed(self, number: int, phase: Phase, predicted_s: float, observed_s: float) -> None:
        """What a prefill or a decode step took, and what the latency model alone would say."""
        if phase is Phase.PREFILL:
            self._prefill.observed(number, predicted_s, observed_s, self.table.prefill_scale)
        else:
            self._decode.observed(number, predicted_s, observed_s, self.table.decode_scale)

    def has_seen(self, phase: Phase) -> bool:
        """Whether predictions of this phase rest on anything observed."""
        return (self._prefill if phase is Phase.PREFILL else self._decode).has_seen

    def fingerprint_code(self, fingerprint: Fingerprint | None) -> int | None:
        """As `Need` wants it."""
        return None if fingerprint is None else self.code("fingerprint", fingerprint)

    def _code(self, column: str, text: str) -> int:
        codes = self._codes[column]
        return codes.setdefault(text, len(codes))

    def _all_used(self) -> Table:
        num_rows = len(self._names)
        return Table._make(column[:num_rows] for column in self._all)

    def _grow(self) -> None:
        old, num_rows = self._all, len(self._all.role)
        self._all = empty_table(2 * num_rows)
        for wide, narrow in zip(self._all, old, strict=True):
            wide[:num_rows] = narrow
