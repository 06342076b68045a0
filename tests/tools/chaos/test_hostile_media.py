"""Videos that announce more than they hold: refused before FFmpeg makes room for it."""

from __future__ import annotations

import pytest

from rebus.data.audio import check_audio
from rebus.data.video import Video
from rebus.errors import InvalidArgumentError
from tools.chaos.hostile_media import mp4_announcing


@pytest.mark.parametrize("fragment", [False, True])
@pytest.mark.parametrize("read", [Video, check_audio])
def test_an_index_that_announces_more_than_the_file_holds_is_refused(read: type[Video], fragment: bool) -> None:
    data = mp4_announcing(30_000_000, fragment=fragment)
    with pytest.raises(InvalidArgumentError, match=rf"announces 30000000 samples or more, and holds {len(data)} bytes"):
        read(data)


@pytest.mark.parametrize("fragment", [False, True])
def test_a_truthful_index_is_left_to_the_decoder(fragment: bool) -> None:
    with pytest.raises(InvalidArgumentError, match="more than the limit of 240 a second"):
        Video(mp4_announcing(20, fragment=fragment))
