"""The exposure and feedback logs that the settings ask for, and their life cycle.

Reads the settings; writes below `exposure_dir` and `feedback_dir`. Invariant: without a folder there is no
log and no cost.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from service.contract.events import EXPOSURES, FEEDBACK
from service.errors import StartupError
from service.settings import Settings
from service.telemetry.exposure import ExposureLog, FeedbackLog, complain
from service.telemetry.log import get_logger
from service.telemetry.metrics import EventMetrics
from service.telemetry.segments import SegmentFiles, check_folder

log = get_logger(__name__)


class EventLogs:
    """Both logs of one process; either may be off.

    Args:
        settings: Of the service.
        metrics: Count what is written.
    """

    def __init__(self, settings: Settings, metrics: EventMetrics) -> None:
        self.metrics = metrics
        self.exposures: ExposureLog | None = None
        self.feedback: FeedbackLog | None = None
        self._files: list[SegmentFiles] = []
        if settings.exposure_dir is not None:
            self.exposures = ExposureLog(
                self._sink(settings, settings.exposure_dir, EXPOSURES),
                metrics,
                sample_ratio=settings.exposure_sample_ratio,
                max_queue=settings.exposure_queue,
                flush_s=settings.exposure_flush_s,
            )
        if settings.feedback_dir is not None:
            self.feedback = FeedbackLog(self._sink(settings, settings.feedback_dir, FEEDBACK))

    async def start(self) -> None:
        """Finish files of dead processes, then begin to write."""
        for files in self._files:
            try:
                found = await asyncio.to_thread(files.recover)
            except OSError as error:  # each write tries the folder again, and says so when it fails
                complain("event_files_not_recovered", error)
                continue
            if found.segments:
                log.warning("event_files_recovered", segments=found.segments, torn_bytes=found.torn_bytes)
        for part in (self.exposures, self.feedback):
            if part is not None:
                part.start()

    async def close(self) -> None:
        """Write what waits; both at once, so that one bad disk does not keep the other log waiting."""
        parts = [part.close() for part in (self.exposures, self.feedback) if part is not None]
        await asyncio.gather(*parts)

    def _sink(self, settings: Settings, folder: Path, kind: str) -> SegmentFiles:
        files = SegmentFiles(
            folder, kind, max_bytes=settings.event_segment_bytes, max_age_s=settings.event_segment_s
        )
        self._files.append(files)
        return files


def check_folders(settings: Settings) -> None:
    """Try to write where exposures and feedback shall go.

    Raises:
        StartupError: A folder cannot be used.
    """
    for name in ("exposure_dir", "feedback_dir"):
        folder: Path | None = getattr(settings, name)
        if folder is None:
            continue
        try:
            check_folder(folder)
        except OSError as error:
            raise StartupError(f"{name}: {folder} cannot be written to: {error.strerror}") from None


__all__ = ["EventLogs", "check_folders"]
