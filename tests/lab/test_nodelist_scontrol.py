"""The nodelist parser beside the real `scontrol show hostnames`. Needs the client program, no daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st

from jobs.cluster.nodelist import expand_nodelist
from jobs.core.errors import ConfigError

Scontrol = Callable[[str], tuple[str, ...] | None]

compare = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def scontrol(tmp_path_factory: pytest.TempPathFactory) -> Scontrol:
    """Expand a list by the real program; None where it refuses the list."""
    program = shutil.which("scontrol")
    if program is None:
        missing = "scontrol is not installed (Debian: slurm-client)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    conf = tmp_path_factory.mktemp("slurm") / "slurm.conf"  # without one, scontrol looks for a controller
    conf.write_text("ClusterName=none\nSlurmctldHost=localhost\nNodeName=localhost\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}

    def expand(text: str) -> tuple[str, ...] | None:
        done = subprocess.run(
            [program, "show", "hostnames", text],
            env=env | {"SLURM_CONF": str(conf)},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if "Invalid" in done.stderr:  # a bad bracket before the last one still lets it print other names
            return None
        assert not done.stderr or "host list is empty" in done.stderr, done.stderr
        return tuple(done.stdout.split())

    assert expand("a[1-2]") == ("a1", "a2")
    return expand


# A grammar of nodelists. Text between brackets may hold digits and dashes, as names of real nodes do.
literal = st.text("abxN09-_.", max_size=4)
start = st.from_regex(r"[a-z][a-z0-9.-]{0,3}", fullmatch=True)
padded = st.builds(lambda n, width: f"{n:0{width}d}", st.integers(0, 1_200), st.integers(1, 4))


@st.composite
def span(draw: st.DrawFn) -> str:
    low = draw(padded)
    high = int(low) + draw(st.integers(0, 3))
    forms = (low, f"{low}-{high}", f"{low}-{high:0{len(low)}d}", f"{low}-")
    return forms[draw(st.integers(0, 3))]


brackets = st.lists(span(), min_size=1, max_size=2).map(lambda spans: f"[{','.join(spans)}]")
outer = st.lists(st.tuples(brackets, literal).map("".join), max_size=2).map("".join)
ranged = st.tuples(st.one_of(start, st.just("")), outer, brackets).map("".join)
name = st.one_of(start, start, ranged)
separator = st.sampled_from([",", ",,", " ", ", ", "\t"])


@st.composite
def nodelists(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.tuples(name, separator), max_size=4))
    return "".join([draw(st.sampled_from(["", ","])), *(part + end for part, end in parts)])


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A nodelist with one character put in or replaced: no digit, so that no range becomes huge."""
    text: str = draw(st.sampled_from(["a", "b1,a"])) + draw(ranged) + draw(st.sampled_from(["", ",c", ",d[7]"]))
    place = draw(st.integers(1, len(text) - 1))  # not the first: -a would be an option to scontrol
    return text[:place] + draw(st.sampled_from("[]-,x ")) + text[place + draw(st.integers(0, 1)) :]


@compare
@example("a[001-010,012]b[1-2]")
@example("a[1-2]b[1-2]c[1-2]d[1-2],e,f[09-11]")
@example("")
@given(nodelists())
def test_every_list_of_the_grammar_expands_as_scontrol_expands_it(scontrol: Scontrol, text: str) -> None:
    event(f"{text.count('[')} brackets")
    assert expand_nodelist(text) == scontrol(text)


@compare
@example("a[2-1]")
@example("a[]b[1]")
@given(damaged())
def test_damaged_lists_are_refused_or_expand_as_scontrol_expands_them(scontrol: Scontrol, text: str) -> None:
    """Never more lenient than scontrol, but for a suffix behind the last bracket (newer releases read it).

    Stricter only where scontrol guesses: brackets that are not in pairs, and space beside a number.
    """
    reference = scontrol(text)
    try:
        expanded = expand_nodelist(text)
    except ConfigError as error:
        event(f"refused here, {'read' if reference else 'refused'} by scontrol")
        assert reference is None or "not in pairs" in error.reason or " " in text
    else:
        event(f"read here, {'read' if reference else 'refused'} by scontrol")
        assert expanded == reference or (reference is None and has_suffix(text))


def has_suffix(text: str) -> bool:
    """Whether some name of the list goes on behind its last bracket."""
    return any(after[:1] not in ("", ",", "\t", "\n", " ", "[") for after in text.split("]")[1:])


@compare
@given(ranged, st.from_regex(r"[-._a-z][-._a-z0-9]{0,3}", fullmatch=True))
def test_suffix_expands_as_scontrol_expands_it_where_its_release_can(
    scontrol: Scontrol, text: str, suffix: str
) -> None:
    reference = scontrol(text + suffix)
    event("this scontrol reads suffixes" if reference else "this scontrol refuses suffixes")
    assert expand_nodelist(text + suffix) == tuple(host + suffix for host in expand_nodelist(text))
    assert reference in (None, expand_nodelist(text + suffix))
