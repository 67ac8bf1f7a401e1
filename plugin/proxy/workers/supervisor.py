"""Starts the processes of a proxy with several workers, replaces those that end, and stops them all.

The supervisor has no event loop and no thread, so that it can fork at any time. It takes signals one after another.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence

from querylift.plugin.child_process import describe_exit_code
from querylift.plugin.proxy.workers.child import STOP_SIGNAL, SUPERVISED_SIGNALS, Child, ChildFailed, Role, start_child

_log = logging.getLogger("querylift")
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_HEALTHY_S = 60.0
"""A child that lived for this long is replaced after the first delay again."""
_DRAIN_S = 30.0
"""How long children may finish what is under way. Their own bound is ten seconds, and their generators end after that."""
_POLL_S = 0.02
"""How often children that are starting are looked at."""


class Supervisor:
    """The processes of one proxy.

    `start_stages` are roles that start one stage after another, and `stop_stages` are the same ones as they stop.
    `on_start_stopping` is called before the first child is told to stop, `on_reload` when SIGHUP has come and no child knows
    of it yet, and `on_end` with the role and the process id of each child that ended. When none of the `essential` roles
    serves, and one of them cannot start, all is stopped.
    """

    def __init__(
        self,
        *,
        start_stages: Sequence[Sequence[Role]],
        stop_stages: Sequence[Sequence[Role]],
        essential: Sequence[Role],
        on_start_stopping: Callable[[], None],
        on_reload: Callable[[], None],
        on_end: Callable[[Role, int], None],
    ) -> None:
        self._start_stages = start_stages
        self._stop_stages = stop_stages
        self._essential = essential
        self._on_start_stopping = on_start_stopping
        self._on_reload = on_reload
        self._on_end = on_end
        self._children: dict[int, Child] = {}
        self._reload_count = 0
        self._starting: dict[int, int] = {}  # process id, and the number of reloads when it was forked
        self._due_s: dict[Role, float] = {}
        self._delays_s: dict[Role, float] = {}
        self._stops = False

    def run(self, announce: Callable[[], None]) -> None:
        """Serve until SIGINT or SIGTERM. `announce` is called once all serve. Raises ChildFailed when one cannot start."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
        try:
            for stage in self._start_stages:
                self._start_stage(stage)
            if not self._stops:
                announce()
            while not self._stops:
                self._replace_ended_children()
        finally:
            self._stop_children()

    def _start_stage(self, stage: Sequence[Role]) -> None:
        """Start the roles, and return when each has served. Raises ChildFailed when one ends before that."""
        for role in stage:
            self._start(role)
        while self._starting and not self._stops:
            for child in self._take_events(_POLL_S):
                if child.check_ready():  # it served, if only for the moment until its report is read
                    self._plan_replacement(child)
                    continue
                failure = child.take_failure()
                raise failure or ChildFailed(f"{child.role.name} ended while it was starting; the log says more", 1)

    def _replace_ended_children(self) -> None:
        """Wait for something to happen. Start what is due."""
        for child in self._take_events(_POLL_S if self._starting else self._compute_pause_s()):
            self._plan_replacement(child)
        for role in [role for role, due_s in self._due_s.items() if due_s <= time.monotonic() and not self._stops]:
            del self._due_s[role]
            self._start(role)

    def _start(self, role: Role) -> None:
        child = start_child(role, now_s=time.monotonic())
        self._children[child.pid] = child
        self._starting[child.pid] = self._reload_count

    def _take_events(self, timeout_s: float | None) -> list[Child]:
        """Wait for a signal for up to `timeout_s` seconds, or without an end. Handle it. Return the children that ended."""
        taken = (
            signal.sigwait(SUPERVISED_SIGNALS)
            if timeout_s is None
            else getattr(signal.sigtimedwait(SUPERVISED_SIGNALS, timeout_s), "si_signo", None)
        )
        if taken in (signal.SIGINT, signal.SIGTERM):
            self._stops = True
        if taken == signal.SIGHUP:
            self._reload_count += 1
            self._on_reload()
            for pid in self._children.keys() - self._starting.keys():
                self._children[pid].send_signal(signal.SIGHUP)
        ended_children = self._reap_children()
        for pid in [pid for pid in self._starting if self._children[pid].check_ready()]:
            if self._starting.pop(pid) < self._reload_count:  # the child began with the settings before that
                self._children[pid].send_signal(signal.SIGHUP)
        return ended_children

    def _reap_children(self) -> list[Child]:
        """Return the children that have ended."""
        ended_children = []
        for pid in list(self._children):
            ended_pid, status = os.waitpid(pid, os.WNOHANG)
            if ended_pid:
                child = self._children.pop(pid)
                self._starting.pop(pid, None)
                self._on_end(child.role, pid)
                ended_children.append(child)
                if not self._stops:
                    _log.warning(
                        "%s (process %d) ended (%s)",
                        child.role.name,
                        pid,
                        describe_exit_code(os.waitstatus_to_exitcode(status)),
                    )
        return ended_children

    def _plan_replacement(self, child: Child) -> None:
        """Let a new child start after a delay. The delay grows while children end soon after their start.

        Raises ChildFailed when nothing serves any more.
        """
        now_s = time.monotonic()
        delay_s = self._delays_s.get(child.role, _FIRST_DELAY_S)
        if now_s - child.started_s >= _HEALTHY_S:
            delay_s = _FIRST_DELAY_S
        if failure := child.take_failure():
            if child.role in self._essential and not self._serves():
                raise failure
            _log.error("%s cannot start: %s", child.role.name, failure)
        _log.warning("a new %s starts in %g s", child.role.name, delay_s)
        self._due_s[child.role] = now_s + delay_s
        self._delays_s[child.role] = min(delay_s * 2, _LONGEST_DELAY_S)

    def _serves(self) -> bool:
        """Whether one of the essential roles serves."""
        serving = (child.role for pid, child in self._children.items() if pid not in self._starting)
        return any(role in self._essential for role in serving)

    def _compute_pause_s(self) -> float | None:
        """Return the seconds until a child is to be started, or None when none is."""
        return max(0.0, min(self._due_s.values()) - time.monotonic()) if self._due_s else None

    def _stop_children(self) -> None:
        """Stop the stages one after another, each within a time limit."""
        self._stops = True
        self._on_start_stopping()
        for stage in self._stop_stages:
            until_s = time.monotonic() + _DRAIN_S
            for child in self._list_children(stage):
                child.send_signal(STOP_SIGNAL)
            while self._list_children(stage):
                remaining_s = until_s - time.monotonic()
                if remaining_s <= 0:
                    self._kill_children(stage)
                self._take_events(max(_POLL_S, remaining_s))

    def _kill_children(self, stage: Sequence[Role]) -> None:
        for child in self._list_children(stage):
            _log.error("%s did not end within %g s and is killed", child.role.name, _DRAIN_S)
            child.send_signal(signal.SIGKILL)

    def _list_children(self, stage: Sequence[Role]) -> list[Child]:
        return [child for child in self._children.values() if child.role in stage]
