"""Videos as rows: every record of a video becomes one record per chosen frame, grouped by the video."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.files import VIDEOS, File, packed, pnm, suffix, unpacked
from onceclip.pipeline.sources.record import Listing, Record, SourceOptions
from onceclip.pipeline.words import counted, listing

_MARK = b"onceclip: frames of a video\0"
_NAMED = 4
_AT_ONCE = 4
_last = threading.local()


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a video.

    number: its place, from 0, in the order of showing. time: its time stamp, in the video's own unit, or None if the
    video has none that tell its frames apart. keyframe: that of the last frame up to it that decodes alone.
    """

    file: File
    number: int
    time: int | None = None
    keyframe: int = 0

    def read(self) -> bytes:
        """The frame as a PNM file.

        Raises BadImage if it cannot be decoded.
        """
        import av

        try:
            # Where a seek went too far, the frame is looked for from the beginning.
            frame = self._found(seek=self.time is not None) or (self._found(seek=False) if self.time else None)
        except (av.FFmpegError, OSError) as error:
            close_video()
            raise BadImage(f"cannot be decoded ({error})") from error
        if frame is None:
            close_video()
            raise BadImage("the video ends before this frame, or has lost it")
        return pnm(frame.to_ndarray(format="rgb24"))

    def _found(self, seek: bool) -> Any:
        """The frame, or None. The last video read is read on if that is nearer than the key frame."""
        here: _Reading | None = getattr(_last, "reading", None)
        if here is None or here.file != self.file or here.position >= self._place or (
                self.time is not None and self.keyframe > here.position) or (not seek and self.time is not None):
            close_video()
            here = _last.reading = _Reading(self.file, self.keyframe if seek else None)
        for number, frame in here.frames:
            place = number if self.time is None else frame.pts
            if place is not None:
                here.position = place
                if place >= self._place:
                    return frame if place == self._place else None
        return None

    @property
    def _place(self) -> int:
        return self.number if self.time is None else self.time


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video that an encoder takes as one input, in the order of showing; of a short video some twice."""

    frames: tuple[Frame, ...]

    def read(self) -> bytes:
        """All frames as one content, which `frames_in` takes apart.

        Raises BadImage if one cannot be decoded.
        """
        found = {frame: frame.read() for frame in dict.fromkeys(self.frames)}
        return packed(_MARK, [found[frame] for frame in self.frames])


def frames_in(content: bytes, number: int) -> list[bytes]:
    """The frames of a clip of so many, as PNM files. Raises BadImage for any other content."""
    try:
        return unpacked(_MARK, content, number)
    except ValueError:
        raise BadImage(f"it is no video of which the encoder could look at {number} frames") from None


class _Reading:
    """A video that is being decoded. position: number or time of the last frame; frames: those that follow."""

    def __init__(self, file: File, seek: int | None) -> None:
        import av

        self.file, self.position = file, -(1 << 63)
        self.stream = file.stream()
        self.container = av.open(self.stream, mode="r")
        pictures = self.container.streams.video[0]
        if seek is not None:
            self.container.seek(seek, stream=pictures)
        self.frames: Iterator[tuple[int, Any]] = enumerate(self.container.decode(pictures))

    def close(self) -> None:
        """Close the file."""
        for each in ("container", "stream"):
            if hasattr(self, each):
                getattr(self, each).close()

    __del__ = close  # also where the thread that reads comes to its end


def close_video() -> None:
    """Close the video that this thread read last."""
    here: _Reading | None = getattr(_last, "reading", None)
    if here is not None:
        here.close()
        _last.reading = None


def with_frames(found: Listing, options: SourceOptions) -> Listing:
    """A listing in which every video's record is replaced by those of its frames, or by one of a clip of them.

    Without a choice of frames, or the decoder for it, videos are left out with a remark that names them.
    Raises SourceError if frames are asked for and no decoder is installed.
    """
    videos = [record for record in found.records if suffix(record.key) in VIDEOS]
    if options.clip and (options.every or options.frames):
        raise SourceError(f"the encoder takes {options.clip} frames of every video as one input: leave --every and "
                          "--frames out")
    if not videos:
        if options.every or options.frames:
            raise SourceError("there are no videos: leave --every and --frames out")
        if options.clip:
            raise SourceError(f"there are no videos, of which the encoder takes {options.clip} frames each: give some, "
                              "or another encoder")
        return found
    if not (options.every or options.frames or options.clip):
        names = listing([record.key for record in videos], _NAMED)
        remark = f"{counted(len(videos), 'video')} left out ({names}): take frames with --every N or --frames N"
        return Listing([record for record in found.records if suffix(record.key) not in VIDEOS],
                       [*found.remarks, remark])
    try:
        import av  # noqa: F401 - whether it is there
    except ImportError:
        raise SourceError("frames of videos need PyAV: pip install 'onceclip[video]'") from None
    records: list[Record] = []
    remarks = list(found.remarks)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        decoded = pool.map(lambda record: _frames(record, options), videos)
        for record in found.records:
            if suffix(record.key) not in VIDEOS:
                records.append(record)
                continue
            frames, trouble = next(decoded)
            records += frames
            if trouble:
                remarks.append(f"{record.key}: {trouble}")
    return Listing(records, remarks)


def _frames(record: Record, options: SourceOptions) -> tuple[list[Record], str]:
    """The records of a video's chosen frames, or the one of its clip, and what is wrong with it.

    A video that cannot be read stays one record, whose content then is a bad image.
    """
    import av

    file: Any = record.content
    try:
        with file.stream() as stream, av.open(stream) as container:
            if not container.streams.video:
                return [record], "has no pictures"
            packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(container.streams.video[0])
                       if packet.size and not packet.is_discard]
    except (av.FFmpegError, OSError) as error:
        return [record], f"cannot be read ({error})"
    if not packets:
        return [record], "has no frames"
    times = sorted(time for time, _ in packets if time is not None)
    keys = {time for time, alone in packets if alone}
    timed = len(set(times)) == len(packets) and times[0] in keys
    number_of = options.frames or options.clip
    spread = [(2 * part + 1) * len(packets) // (2 * number_of) for part in range(number_of)]
    chosen = range(0, len(packets), options.every) if options.every else spread
    keyframe, last, frames = 0, 0, list[Frame]()
    for number in chosen:
        if timed:
            keyframe = next((times[each] for each in range(number, last - 1, -1) if times[each] in keys), keyframe)
            last = number
        frames.append(Frame(file, number, times[number], keyframe) if timed else Frame(file, number))
    if options.clip:
        return [replace(record, content=Clip(tuple(frames)))], ""
    return [Record(f"{record.key}#frame={frame.number:06d}", frame, record.label, record.split,
                   record.group or record.key) for frame in dict.fromkeys(frames)], ""
