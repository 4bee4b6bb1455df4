"""How far the benchmark of kills has come, in a file that a later command goes on with."""

import json
import random
import sys

from benchmarks.harness import surroundings, write_json


class Progress:
    """The results so far, in a file that a later command goes on with.

    Args:
        path: of the file; None for no file.
        seed, ranks: of the command. A file of others is refused.

    Attributes:
        results (dict): what is killed -> see :func:`benchmarks.kills.kill_runs`.

    Raises:
        ValueError: the file belongs to another seed, number of processes or commit.
    """

    def __init__(self, path, seed, ranks):
        self.path, self.seed, self.results = path, seed, {}
        now = surroundings()
        self._settings = {"seed": seed, "ranks": ranks, "commit": now["commit"], "changed_since": now["changed_since"]}
        if path and path.is_file():
            kept = json.loads(path.read_text())
            if kept.get("settings") != self._settings or now["changed_since"]:  # two changes of one commit may differ
                raise ValueError(f"found the progress of {kept.get('settings')} in {path}, expected {self._settings}; "
                                 "name another file")
            self.results = kept["results"]

    def of(self, what, several):
        """The results of one kind of kills, to be counted further; `several` processes have one more."""
        more = {"on_one": 0} if several else {}
        return self.results.setdefault(what, {"kills": 0, "before_first_save": 0, "equal": 0, **more})

    def moment(self, what, number):
        """When a kill comes: a number in [0, 1)."""
        return random.Random(f"{self.seed} {what} {number}").random()

    def count(self, what, **more):
        """Add a kill and its figures, tell, and save."""
        found = self.results[what]
        for name, value in {"kills": 1, **more}.items():
            found[name] += int(value)
        print(f"{what}: {found}", file=sys.stderr, flush=True)
        if self.path:
            temporary = self.path.with_name(f"{self.path.name}.tmp")
            write_json(temporary, {"settings": self._settings, "results": self.results})
            temporary.replace(self.path)
