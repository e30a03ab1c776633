"""`faithad audit --follow`: audit a folder again and again while recorders write into it."""

from __future__ import annotations

import time
from collections.abc import Callable

from faithad.audit.finished import require_finished
from faithad.audit.outcome import Outcome, audit_outcome
from faithad.config.audit import AuditRun
from faithad.errors import RecordingError, StorageError, StudyError
from faithad.pipelines.audit.run import AuditRunner
from faithad.progress import console


def follow_audit(
    run: AuditRun,
    *,
    redo: bool,
    retry_failed: bool,
    accept_missing: bool,
    say: Callable[[str], None],
) -> Outcome:
    """Look for new recordings every `follow.every_s`, and audit those that nobody has written into for a while.

    It ends with Ctrl-C. Recordings that are out of reach or not there yet are waited for.

    Args:
        run: what to audit, and how.
        redo: see `run_audit`; of the first look.
        retry_failed: see `run_audit`; of the first look.
        accept_missing: see `run_audit`; of each look.
        say: called with the result of each look, if it is new.

    Returns:
        What the audit came to.

    Raises:
        KeyboardInterrupt: in the middle of an audit, or before anything could be audited.
        StudyError: as `run_audit`; recordings that were audited have changed, for example.
    """
    runner, last_news, is_first = AuditRunner(run), "", True
    try:
        while True:
            try:
                outcome = runner.look(
                    redo=redo and is_first,
                    retry_failed=retry_failed and is_first,
                    accept_missing=accept_missing,
                    only_settled=True,
                    check=is_first,
                )
                news, is_first = outcome.line, False
            except (StorageError, RecordingError) as error:
                news = f"Waiting: {error}"
            if news != last_news:
                say(news)
                console.print(f"follow: looking every {run.follow.every_s:g} s; Ctrl-C ends it")
                last_news = news
            time.sleep(run.follow.every_s)
    except KeyboardInterrupt:
        try:
            require_finished(run.out)
        except StudyError:
            raise KeyboardInterrupt from None
        return audit_outcome(run.out)
