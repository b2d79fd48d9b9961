"""Images that wait are scored together; one that fails takes no other with it."""

import pytest

from anomaly_lib.data.images import TooManyPixels
from anomaly_lib.errors import UserError
from anomaly_lib.serving.service import Full, Service
from anomaly_lib.serving.uploads import Upload
from tests.support.serving import Brightness, picture, until


@pytest.fixture
def detector() -> Brightness:
    return Brightness()


@pytest.fixture
def service(detector: Brightness):  # type: ignore[no-untyped-def]
    one = Service("a", detector, batch_size=4, queue=6, most_pixels=1000)
    yield one
    detector.hold.set()
    assert one.close(5)


def ready(service: Service, count: int) -> None:
    until(lambda: len(service._ready) == count)


def test_what_waits_is_scored_together(service: Service, detector: Brightness) -> None:
    detector.hold.clear()
    first = service.submit(Upload("0.png", picture(0)))
    until(lambda: first.running())
    others = [service.submit(Upload(f"{level}.png", picture(level))) for level in (51, 102, 153, 204, 255)]
    ready(service, 5)
    detector.hold.set()
    scores = [answer.result(20).score.item() for answer in (first, *others)]
    assert scores == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-6)
    assert detector.batches == [1, 4, 1]
    assert service.batches == 3


def test_a_failing_image_fails_alone(service: Service, detector: Brightness) -> None:
    detector.hold.clear()
    first = service.submit(Upload("0.png", picture(0)))
    until(lambda: first.running())
    kinds = {"good.png": (9, 9), "row.png": (9, 1), "column.png": (1, 9)}
    answers = {name: service.submit(Upload(name, picture(102, size))) for name, size in kinds.items()}
    ready(service, 3)
    detector.hold.set()
    assert answers["good.png"].result(20).score.item() == pytest.approx(0.4)
    with pytest.raises(UserError, match=r"^row\.png: a picture of one row$"):
        answers["row.png"].result(20)
    with pytest.raises(RuntimeError, match="one column"):
        answers["column.png"].result(20)
    assert service.submit(Upload("x.png", picture(255))).result(20).score.item() == pytest.approx(1)  # it goes on


def test_damaged_and_large_images_never_reach_the_detector(service: Service, detector: Brightness) -> None:
    with pytest.raises(UserError, match=r"^x\.png: unreadable image \(not an image\)$"):
        service.submit(Upload("x.png", b"hello")).result(20)
    with pytest.raises(TooManyPixels, match=r"^x\.png: an image of 40x30 pixels; at most 1,000 are taken$"):
        service.submit(Upload("x.png", picture(3, (40, 30)))).result(20)
    assert detector.batches == []


def test_places_are_counted_and_given_back(service: Service) -> None:
    with service.places(4), service.places(2):
        assert service.waiting == 6
        with pytest.raises(Full), service.places(1):
            pass
    assert service.waiting == 0
    with pytest.raises(Full), service.places(7):
        pass


def test_a_cancelled_image_is_not_scored(service: Service, detector: Brightness) -> None:
    detector.hold.clear()
    first = service.submit(Upload("0.png", picture(0)))
    until(lambda: first.running())
    second, third = (service.submit(Upload(f"{level}.png", picture(level))) for level in (51, 255))
    ready(service, 2)
    assert second.cancel()
    detector.hold.set()
    assert third.result(20).score.item() == pytest.approx(1)
    assert detector.batches == [1, 1]


def test_many_more_than_are_held_decoded_are_all_answered(service: Service, detector: Brightness) -> None:
    answers = [service.submit(Upload("x.png", picture(level))) for level in range(100)]
    found = [answer.result(20).score.item() for answer in answers]
    assert found == pytest.approx([level / 255 for level in range(100)], abs=1e-6)
    assert max(detector.batches) <= 4


def test_detectors_that_score_images_by_one_another_are_refused(detector: Brightness) -> None:
    detector.transductive = True
    with pytest.raises(UserError, match="by one another"):
        Service("musc", detector)
