"""Ends what is no fit on SIGTERM."""

import signal
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from lightning import Trainer
from lightning.pytorch import Callback
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher


class EndedBySigterm(Callback):
    """Ends validate, test and predict at once on SIGTERM, by ``SystemExit(143)``, with the processes of the other devices.

    Lightning's own handler only sets a flag that a fit alone reads; with several devices it waits for ranks that got no signal.
    A fit has ``ResumableCheckpoint``.
    """

    def obey(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Handles SIGTERM again once Lightning has set a handler of its own.

        Args:
            trainer: Its launcher's processes are killed too.
        """

        def end(number: int, frame: FrameType | None) -> None:
            launcher = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(number)
                launcher.procs.clear()  # else its observer would kill this process for their end
            raise SystemExit(128 + number)

        if current_thread() is main_thread():
            signal.signal(signal.SIGTERM, end)

    on_validation_start = on_test_start = on_predict_start = obey

    def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Handles SIGTERM while models load.

        Args:
            trainer: Its launcher's processes are killed too.
        """
        self.before = signal.getsignal(signal.SIGTERM)
        self.obey(trainer)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Gives the handler back that was there."""
        if current_thread() is main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self.before is None else self.before)
