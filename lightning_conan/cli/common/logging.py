"""Preparation of every verb: quiet libraries, and a bar on terminals only."""

import logging
import sys
import warnings


def quiet_libraries() -> None:
    """No progress bars from transformers, no advice from Lightning that does not hold here."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for pattern in (
        r".*does not have many workers.*",  # the stream says itself when it waits
        r".*dataloader is not resumable.*",  # the data module resumes, not its loader
        r".*eval mode at the start of training.*",  # frozen parts are in eval mode on purpose
        r".*args parameter is intended to run from within Python.*",  # that is how main() is made
        r".*Total length of `dict` across ranks is zero.*",  # validation is optional
        r".*Using ModelCheckpoint with manual optimization.*",  # it saves between steps
        r".*is_gradient_checkpointing.*",
        r".*treespec.*",
        r".*`self.log\('val.*",
    ):
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


def show_progress() -> bool:
    """Progress bars belong on terminals only."""
    return sys.stderr.isatty()
